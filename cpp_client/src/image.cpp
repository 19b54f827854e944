#include "image.h"

#include <algorithm>
#include <string>
#include <utility>

#include "nin/error.h"
#include "resize.h"

namespace nin {
namespace {

std::string by(std::size_t width, std::size_t height) {
  return std::to_string(width) + "x" + std::to_string(height);
}

bool is_edge(std::size_t length) { return length >= 1 && length <= max_edge; }

}  // namespace

Image make_image(std::size_t width, std::size_t height, Decoding::Mode mode) {
  Image image{width, height, mode == Decoding::Mode::grey ? 1U : 3U, {}};
  image.pixels.reserve(width * height * image.channels);
  return image;
}

void check(const Decoding& decoding) {
  const auto [width, height] = std::pair(decoding.width, decoding.height);
  if (!is_edge(width) || !is_edge(height) || width * height > max_pixels) {
    throw Error("images can't be made " + by(width, height) + " pixels; an edge has 1 to " +
                std::to_string(max_edge) + ", and all " + std::to_string(max_pixels) + " at most");
  }
  if (decoding.resize == Decoding::Resize::crop && !is_edge(decoding.shorter_side)) {
    throw Error("a shorter side can't have " + std::to_string(decoding.shorter_side) +
                " pixels, expected 1 to " + std::to_string(max_edge));
  }
}

void check_size(const ImageHeader& header, const Decoding& decoding) {
  auto [width, height, orientation] = header;
  const auto [shorter, longer] = std::minmax(width, height);
  const std::string size = by(width, height) + " pixels";
  if (shorter < 1 || longer > max_pixels / shorter) {
    throw Error(size + ", at most " + std::to_string(max_pixels) + " are decoded");
  }
  if (longer > max_edge) throw Error(size + ", an edge has at most " + std::to_string(max_edge));
  if (orientation >= 5) std::swap(width, height);
  const Size resized = resized_size({width, height}, decoding);
  if (resized.width == 0 || resized.height == 0) {
    throw Error(size + ", of which an edge vanishes at " + by(decoding.width, decoding.height));
  }
  if (resized.width > max_pixels / resized.height) {
    throw Error(size + ", which would become " + by(resized.width, resized.height) +
                " pixels, at most " + std::to_string(max_pixels));
  }
}

}  // namespace nin
