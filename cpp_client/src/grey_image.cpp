#include "grey_image.h"

#include <algorithm>
#include <string>

#include "nin/error.h"
#include "nin/files.h"

namespace nin {

constexpr std::size_t max_pixels = 50'000'000;  // a photograph has 12 to 48 million
constexpr std::size_t max_edge = 65'535;        // as JPEG's; a decoder needs memory for each row

void check_size(std::size_t width, std::size_t height) {
  const auto [shorter, longer] = std::minmax(width, height);
  const std::string size = std::to_string(width) + "x" + std::to_string(height) + " pixels";
  if (shorter < 1 || longer > max_pixels / shorter) {
    throw Error(size + ", at most " + std::to_string(max_pixels) + " are decoded");
  }
  if (longer > max_edge) throw Error(size + ", an edge has at most " + std::to_string(max_edge));
  if (longer >= 2 * image_side * shorter) {  // half a pixel is rounded to none
    throw Error(size + ", of which the shorter edge vanishes at " + std::to_string(image_side) +
                " pixels of the longer one");
  }
}

}  // namespace nin
