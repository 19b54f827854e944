#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace nin {

/// Grey pixels, row by row, black is 0.
struct GreyImage {
  std::size_t width;
  std::size_t height;
  std::vector<std::uint8_t> pixels;
};

/// Throws Error if a file declares more pixels than are decoded, or none, a longer edge, or a
/// shorter one that vanishes when the image is fitted into 28x28: to be called before anything is
/// decoded or allocated, since a small file can promise gigabytes.
void check_size(std::size_t width, std::size_t height);

/// Grey by ITU-R 601, in Pillow's fixed point.
[[nodiscard]] constexpr std::uint8_t luma(std::uint32_t red, std::uint32_t green,
                                          std::uint32_t blue) {
  return static_cast<std::uint8_t>((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16);
}

/// A sample laid over opaque black, in the fixed point of Pillow's alpha_composite.
[[nodiscard]] constexpr std::uint8_t over_black(std::uint32_t sample, std::uint32_t alpha) {
  constexpr std::uint32_t bits = 7;
  constexpr std::uint32_t half = 0x80U << bits;
  const std::uint32_t weighted = sample * ((alpha * 255 * 255 << bits) / (255 * 255)) + half;
  return static_cast<std::uint8_t>((((weighted >> 8) + weighted) >> 8) >> bits);
}

}  // namespace nin
