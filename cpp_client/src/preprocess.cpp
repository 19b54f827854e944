#include "preprocess.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "nin/files.h"

namespace nin {
namespace {

/// Where an enlarged row or column comes from: two neighbours and their weights in sixteenths.
struct Source {
  std::size_t first;
  std::size_t second;
  std::uint32_t first_weight;
  std::uint32_t second_weight;
};

/// Row u samples the input at (u + 0.5) / 8 - 0.5, clamped: (2u - 7) / 16, exactly.
std::array<Source, network_side> sources() {
  std::array<Source, network_side> all{};
  for (std::size_t u = 0; u < network_side; ++u) {
    const std::size_t sixteenths = 2 * u < 7 ? 0 : 2 * u - 7;
    const std::size_t first = sixteenths / 16;
    const auto weight = static_cast<std::uint32_t>(sixteenths % 16);
    all[u] = {first, std::min(first + 1, image_side - 1), 16 - weight, weight};
  }
  return all;
}

void enlarge(std::span<const std::uint8_t> pixels, std::span<float> image) {
  static const auto from = sources();
  auto out = image.begin();
  for (const Source& row : from) {
    const auto upper = pixels.subspan(row.first * image_side, image_side);
    const auto lower = pixels.subspan(row.second * image_side, image_side);
    for (const Source& column : from) {
      const auto across = [&](std::span<const std::uint8_t> line) {
        return column.first_weight * line[column.first] +
               column.second_weight * line[column.second];
      };
      // whole numbers up to here, so there is one rounding in all
      const std::uint32_t sum =
          row.first_weight * across(upper) + row.second_weight * across(lower);
      *out++ = static_cast<float>(sum) / (256.0F * 255.0F);
    }
  }
}

}  // namespace

std::vector<float> preprocess(std::span<const std::uint8_t> pixels) {
  const std::size_t count = pixels.size() / image_pixels;
  std::vector<float> images(count * network_pixels);
  for (std::size_t i = 0; i < count; ++i) {
    enlarge(pixels.subspan(i * image_pixels, image_pixels),
            std::span(images).subspan(i * network_pixels, network_pixels));
  }
  return images;
}

std::vector<float> softmax(std::span<const float> logits, std::size_t classes) {
  std::vector<float> probabilities;
  probabilities.reserve(logits.size());
  for (std::size_t start = 0; start < logits.size(); start += classes) {
    const auto row = logits.subspan(start, classes);
    const double largest = *std::max_element(row.begin(), row.end());
    double sum = 0;
    for (const float logit : row) sum += std::exp(logit - largest);
    for (const float logit : row) {
      probabilities.push_back(static_cast<float>(std::exp(logit - largest) / sum));
    }
  }
  return probabilities;
}

}  // namespace nin
