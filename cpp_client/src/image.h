#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "nin/decoding.h"

namespace nin {

inline constexpr std::size_t max_pixels = 50'000'000;  // a photograph has 12 to 48 million
inline constexpr std::size_t max_edge = 65'535;  // as JPEG's; a decoder needs memory for each row

/// Pixels row by row, each of one grey byte or of R, G and B.
struct Image {
  std::size_t width;
  std::size_t height;
  std::size_t channels;
  std::vector<std::uint8_t> pixels;
};

struct Colour {
  std::uint8_t red;
  std::uint8_t green;
  std::uint8_t blue;
};

/// What a file's header says of it.
struct ImageHeader {
  std::size_t width;
  std::size_t height;
  int orientation;  ///< Exif's, 1 to 8
};

/// An image of this size, yet without pixels, but with memory for them.
[[nodiscard]] Image make_image(std::size_t width, std::size_t height, Decoding::Mode mode);

/// Throws Error where a decoding isn't one: an edge of 0, too large ones, a crop of nothing.
void check(const Decoding& decoding);

/// Throws Error if a file declares more pixels than are decoded, or none, a longer edge, or what
/// would be too large or vanish when it is resized: to be called before anything is decoded or
/// allocated, since a small file can promise gigabytes.
void check_size(const ImageHeader& header, const Decoding& decoding);

/// Grey by ITU-R 601, in Pillow's fixed point. Of grey, it is the same.
[[nodiscard]] constexpr std::uint8_t luma(const Colour& colour) {
  const std::uint32_t red = colour.red, green = colour.green, blue = colour.blue;
  return static_cast<std::uint8_t>((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16);
}

/// Appends a pixel to an image of either kind.
inline void append(Image& image, const Colour& colour) {
  if (image.channels == 1) {
    image.pixels.push_back(luma(colour));
  } else {
    image.pixels.insert(image.pixels.end(), {colour.red, colour.green, colour.blue});
  }
}

/// A sample laid over opaque black, in the fixed point of Pillow's alpha_composite.
[[nodiscard]] constexpr std::uint8_t over_black(std::uint32_t sample, std::uint32_t alpha) {
  constexpr std::uint32_t bits = 7;
  constexpr std::uint32_t half = 0x80U << bits;
  const std::uint32_t weighted = sample * ((alpha * 255 * 255 << bits) / (255 * 255)) + half;
  return static_cast<std::uint8_t>((((weighted >> 8) + weighted) >> 8) >> bits);
}

}  // namespace nin
