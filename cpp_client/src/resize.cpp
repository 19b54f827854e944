// Pillow's resampling in 8 bits (src/libImaging/Resample.c): two passes with coefficients in fixed
// point, so that the pixels are the same, bit for bit. The width comes first, as in the Pillow of
// deploy/Dockerfile; from 13 on, Pillow begins with the height where that shrinks much more.
// The sizes are those of PIL.ImageOps.pad, and of torchvision's Resize and CenterCrop.

#include "resize.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

namespace nin {
namespace {

constexpr int precision_bits = 32 - 8 - 2;

/// The input pixels that one output pixel is made of, and their weights.
struct Window {
  std::size_t first;
  std::vector<std::int32_t> weights;
};

/// How much a pixel weighs by its distance, and the distance from which on it weighs nothing.
struct Kernel {
  double (*weight)(double);
  double support;
};

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

double bilinear(double x) { return std::max(1.0 - std::abs(x), 0.0); }

Kernel kernel_of(Decoding::Filter filter) {
  return filter == Decoding::Filter::bicubic ? Kernel{bicubic, 2.0} : Kernel{bilinear, 1.0};
}

std::int32_t to_fixed_point(double weight) {
  const double scaled = weight * (1 << precision_bits);
  return static_cast<std::int32_t>(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
}

Window window_around(double center, double scale, std::size_t in_size, const Kernel& kernel) {
  const double stretch = std::max(scale, 1.0);  // antialiased where it gets smaller
  const double support = kernel.support * stretch;
  const double inverse = 1.0 / stretch;
  const auto first = static_cast<std::size_t>(std::max(center - support + 0.5, 0.0));
  const auto end = std::min(static_cast<std::size_t>(center + support + 0.5), in_size);
  std::vector<double> weights;
  double sum = 0.0;
  for (std::size_t x = first; x < end; ++x) {
    weights.push_back(kernel.weight((static_cast<double>(x) - center + 0.5) * inverse));
    sum += weights.back();
  }
  Window window{first, {}};
  for (const double weight : weights) {
    window.weights.push_back(to_fixed_point(sum != 0.0 ? weight / sum : weight));
  }
  return window;
}

std::vector<Window> windows(std::size_t in_size, std::size_t out_size, const Kernel& kernel) {
  const double scale = static_cast<double>(in_size) / static_cast<double>(out_size);
  std::vector<Window> all;
  for (std::size_t x = 0; x < out_size; ++x) {
    all.push_back(window_around((static_cast<double>(x) + 0.5) * scale, scale, in_size, kernel));
  }
  return all;
}

/// `samples` begins at the first one of a row or column, and `step` leads to the next.
std::uint8_t weigh(const Window& window, std::span<const std::uint8_t> samples, std::size_t step) {
  std::int32_t sum = 1 << (precision_bits - 1);
  std::size_t at = window.first * step;
  for (const std::int32_t weight : window.weights) {
    sum += samples[at] * weight;
    at += step;
  }
  return static_cast<std::uint8_t>(std::clamp(sum >> precision_bits, 0, 255));
}

std::size_t row_size(const Image& image) { return image.width * image.channels; }

std::span<const std::uint8_t> row_of(const Image& image, std::size_t y) {
  return std::span(image.pixels).subspan(y * row_size(image), row_size(image));
}

Image resize_width(const Image& image, std::size_t width, const Kernel& kernel) {
  const std::vector<Window> columns = windows(image.width, width, kernel);
  Image resized{width, image.height, image.channels, {}};
  resized.pixels.reserve(row_size(resized) * resized.height);
  for (std::size_t y = 0; y < image.height; ++y) {
    const auto row = row_of(image, y);
    for (const Window& window : columns) {
      for (std::size_t channel = 0; channel < image.channels; ++channel) {
        resized.pixels.push_back(weigh(window, row.subspan(channel), image.channels));
      }
    }
  }
  return resized;
}

Image resize_height(const Image& image, std::size_t height, const Kernel& kernel) {
  Image resized{image.width, height, image.channels, {}};
  resized.pixels.reserve(row_size(resized) * height);
  for (const Window& window : windows(image.height, height, kernel)) {
    for (std::size_t x = 0; x < row_size(image); ++x) {
      resized.pixels.push_back(weigh(window, std::span(image.pixels).subspan(x), row_size(image)));
    }
  }
  return resized;
}

/// A pass that would change nothing isn't made.
Image resize(Image image, const Size& size, const Kernel& kernel) {
  if (image.width != size.width) image = resize_width(image, size.width, kernel);
  return image.height == size.height ? image : resize_height(image, size.height, kernel);
}

/// Python's round: half to even, which is the default rounding mode's.
std::size_t round_half_to_even(double x) { return static_cast<std::size_t>(std::nearbyint(x)); }

double ratio(std::size_t a, std::size_t b) {
  return static_cast<double>(a) / static_cast<double>(b);
}

/// PIL.ImageOps.contain.
Size contained(const Size& size, const Size& most) {
  const double own = ratio(size.width, size.height), allowed = ratio(most.width, most.height);
  const auto in_proportion = [](std::size_t edge, std::size_t other, std::size_t other_becomes) {
    return round_half_to_even(ratio(edge, other) * static_cast<double>(other_becomes));
  };
  if (own > allowed) return {most.width, in_proportion(size.height, size.width, most.width)};
  if (own < allowed) return {in_proportion(size.width, size.height, most.height), most.height};
  return most;
}

/// torchvision.transforms.Resize of one number.
Size shortened(const Size& size, std::size_t shorter_side) {
  const auto [shorter, longer] = std::minmax(size.width, size.height);
  const auto longer_side = static_cast<std::size_t>(ratio(shorter_side * longer, shorter));
  return size.width <= size.height ? Size{shorter_side, longer_side}
                                   : Size{longer_side, shorter_side};
}

/// Where an edge of `size` and one of `frame` lie on each other: what both have in common.
struct Overlap {
  std::size_t from;  ///< in the image
  std::size_t to;    ///< in the frame
  std::size_t length;
};

/// PIL.ImageOps.pad rounds the margin half to even; torchvision's CenterCrop rounds it down, and
/// half to even what it cuts.
Overlap overlap(std::size_t size, std::size_t frame, Decoding::Resize resize) {
  if (size > frame) return {round_half_to_even(ratio(size - frame, 2)), 0, frame};
  const std::size_t margin = frame - size;
  const bool pads = resize == Decoding::Resize::pad;
  return {0, pads ? round_half_to_even(ratio(margin, 2)) : margin / 2, size};
}

/// The centre of an image in a frame of another size, on black.
std::vector<std::uint8_t> centre(const Image& image, const Decoding& decoding) {
  const Overlap across = overlap(image.width, decoding.width, decoding.resize);
  const Overlap down = overlap(image.height, decoding.height, decoding.resize);
  const std::size_t channels = image.channels;
  std::vector<std::uint8_t> pixels(decoding.width * decoding.height * channels, 0);
  for (std::size_t y = 0; y < down.length; ++y) {
    const auto row = row_of(image, down.from + y);
    const std::size_t start = (down.to + y) * decoding.width + across.to;
    std::ranges::copy(row.subspan(across.from * channels, across.length * channels),
                      std::span(pixels).subspan(start * channels).begin());
  }
  return pixels;
}

}  // namespace

Size resized_size(const Size& size, const Decoding& decoding) {
  const Size pixels{decoding.width, decoding.height};
  switch (decoding.resize) {
    case Decoding::Resize::crop:
      return shortened(size, decoding.shorter_side);
    case Decoding::Resize::pad:
      return contained(size, pixels);
    default:
      return pixels;
  }
}

std::vector<std::uint8_t> fit(Image image, const Decoding& decoding) {
  const Size pixels{decoding.width, decoding.height};
  const Size size = resized_size({image.width, image.height}, decoding);
  Image resized = resize(std::move(image), size, kernel_of(decoding.filter));
  return size == pixels ? std::move(resized.pixels) : centre(resized, decoding);
}

}  // namespace nin
