// Pillow's resampling in 8 bits (src/libImaging/Resample.c): two passes with coefficients in fixed
// point, so that the pixels are the same, bit for bit. The width comes first, as in the Pillow of
// deploy/Dockerfile; from 13 on, Pillow begins with the height where that shrinks much more.

#include "resize.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

#include "nin/files.h"

namespace nin {
namespace {

constexpr int precision_bits = 32 - 8 - 2;

/// The input pixels that one output pixel is made of, and their weights.
struct Window {
  std::size_t first;
  std::vector<std::int32_t> weights;
};

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

std::int32_t to_fixed_point(double weight) {
  const double scaled = weight * (1 << precision_bits);
  return static_cast<std::int32_t>(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
}

Window window_around(double center, double scale, std::size_t in_size) {
  const double stretch = std::max(scale, 1.0);  // antialiased where it gets smaller
  const double support = 2.0 * stretch;
  const double inverse = 1.0 / stretch;
  const auto first = static_cast<std::size_t>(std::max(center - support + 0.5, 0.0));
  const auto end = std::min(static_cast<std::size_t>(center + support + 0.5), in_size);
  std::vector<double> weights;
  double sum = 0.0;
  for (std::size_t x = first; x < end; ++x) {
    weights.push_back(bicubic((static_cast<double>(x) - center + 0.5) * inverse));
    sum += weights.back();
  }
  Window window{first, {}};
  for (const double weight : weights) {
    window.weights.push_back(to_fixed_point(sum != 0.0 ? weight / sum : weight));
  }
  return window;
}

std::vector<Window> windows(std::size_t in_size, std::size_t out_size) {
  const double scale = static_cast<double>(in_size) / static_cast<double>(out_size);
  std::vector<Window> all;
  for (std::size_t x = 0; x < out_size; ++x) {
    all.push_back(window_around((static_cast<double>(x) + 0.5) * scale, scale, in_size));
  }
  return all;
}

/// `pixels` begins at the image's first pixel of a row or column, and `step` leads to the next.
std::uint8_t weigh(const Window& window, std::span<const std::uint8_t> pixels, std::size_t step) {
  std::int32_t sum = 1 << (precision_bits - 1);
  std::size_t at = window.first * step;
  for (const std::int32_t weight : window.weights) {
    sum += pixels[at] * weight;
    at += step;
  }
  return static_cast<std::uint8_t>(std::clamp(sum >> precision_bits, 0, 255));
}

GreyImage resize_width(const GreyImage& image, std::size_t width) {
  const std::vector<Window> columns = windows(image.width, width);
  GreyImage resized{width, image.height, {}};
  for (std::size_t y = 0; y < image.height; ++y) {
    const auto row = std::span(image.pixels).subspan(y * image.width, image.width);
    for (const Window& window : columns) resized.pixels.push_back(weigh(window, row, 1));
  }
  return resized;
}

GreyImage resize_height(const GreyImage& image, std::size_t height) {
  GreyImage resized{image.width, height, {}};
  for (const Window& window : windows(image.height, height)) {
    for (std::size_t x = 0; x < image.width; ++x) {
      resized.pixels.push_back(weigh(window, std::span(image.pixels).subspan(x), image.width));
    }
  }
  return resized;
}

/// Python's round: half to even, which is the default rounding mode's.
std::size_t round_half_to_even(double x) { return static_cast<std::size_t>(std::nearbyint(x)); }

/// The length of the edge that goes with `other`, which becomes 28.
std::size_t in_proportion(std::size_t edge, std::size_t other) {
  if (edge == other) return image_side;
  const double ratio = static_cast<double>(edge) / static_cast<double>(other);
  return round_half_to_even(ratio * static_cast<double>(image_side));
}

std::vector<std::uint8_t> centre(const GreyImage& image) {
  const std::size_t left = round_half_to_even(static_cast<double>(image_side - image.width) * 0.5);
  const std::size_t top = round_half_to_even(static_cast<double>(image_side - image.height) * 0.5);
  std::vector<std::uint8_t> pixels(image_pixels, 0);
  for (std::size_t y = 0; y < image.height; ++y) {
    const auto row = std::span(image.pixels).subspan(y * image.width, image.width);
    std::ranges::copy(row, std::span(pixels).subspan((top + y) * image_side + left).begin());
  }
  return pixels;
}

}  // namespace

std::vector<std::uint8_t> fit(const GreyImage& image) {
  const std::size_t longer = std::max(image.width, image.height);
  const std::size_t width = in_proportion(image.width, longer);
  const std::size_t height = in_proportion(image.height, longer);
  const GreyImage narrowed =
      image.width == width ? image : resize_width(image, width);  // a pass of no change is none
  return centre(narrowed.height == height ? narrowed : resize_height(narrowed, height));
}

}  // namespace nin
