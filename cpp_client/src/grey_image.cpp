#include "grey_image.h"

#include <string>

#include "nin/error.h"

namespace nin {

constexpr std::size_t max_pixels = 50'000'000;  // a photograph has 12 to 48 million

void check_size(std::size_t width, std::size_t height) {
  if (width != 0 && height != 0 && width <= max_pixels / height) return;
  throw Error(std::to_string(width) + "x" + std::to_string(height) + " pixels, at most " +
              std::to_string(max_pixels) + " are decoded");
}

}  // namespace nin
