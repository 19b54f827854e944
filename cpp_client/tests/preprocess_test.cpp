#include "preprocess.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "nin/files.h"

namespace {

using nin::image_pixels;
using nin::image_side;
using nin::network_pixels;
using nin::network_side;

TEST(Preprocess, BlackAndWhiteStayBlackAndWhite) {
  const auto images = nin::preprocess(std::vector<std::uint8_t>(image_pixels, 255));
  ASSERT_EQ(images.size(), network_pixels);
  EXPECT_TRUE(std::all_of(images.begin(), images.end(), [](float v) { return v == 1.0F; }));
  const auto black = nin::preprocess(std::vector<std::uint8_t>(image_pixels, 0));
  EXPECT_TRUE(std::all_of(black.begin(), black.end(), [](float v) { return v == 0.0F; }));
}

TEST(Preprocess, IsBilinearAndClampedAtTheEdges) {
  std::vector<std::uint8_t> pixels(image_pixels);
  for (std::size_t i = 0; i < pixels.size(); ++i) {
    pixels[i] = static_cast<std::uint8_t>(i * 37 % 256);
  }
  const auto image = nin::preprocess(pixels);
  const auto at = [&](double position) {  // an independent formula, in floating point
    return std::clamp(position, 0.0, static_cast<double>(image_side - 1));
  };
  for (std::size_t v = 0; v < network_side; ++v) {
    for (std::size_t u = 0; u < network_side; ++u) {
      const double y = at((static_cast<double>(v) + 0.5) / 8 - 0.5);
      const double x = at((static_cast<double>(u) + 0.5) / 8 - 0.5);
      const auto y0 = static_cast<std::size_t>(y);
      const auto x0 = static_cast<std::size_t>(x);
      const std::size_t y1 = std::min(y0 + 1, image_side - 1);
      const std::size_t x1 = std::min(x0 + 1, image_side - 1);
      const double fy = y - static_cast<double>(y0);
      const double fx = x - static_cast<double>(x0);
      const double expected =
          (1 - fy) * ((1 - fx) * pixels[y0 * image_side + x0] + fx * pixels[y0 * image_side + x1]) +
          fy * ((1 - fx) * pixels[y1 * image_side + x0] + fx * pixels[y1 * image_side + x1]);
      ASSERT_NEAR(image[v * network_side + u], expected / 255, 1e-7) << v << ' ' << u;
    }
  }
}

TEST(Preprocess, ImagesDoNotTouchEachOther) {
  std::vector<std::uint8_t> pixels(2 * image_pixels, 0);
  std::fill(pixels.begin() + image_pixels, pixels.end(), std::uint8_t{255});
  const auto images = nin::preprocess(pixels);
  EXPECT_EQ(images[network_pixels - 1], 0.0F);
  EXPECT_EQ(images[network_pixels], 1.0F);
}

TEST(Softmax, SumsToOneAndSurvivesLargeLogits) {
  const std::vector<float> logits = {1000.0F, 1000.0F, -1000.0F, 0.0F, 1.0F, 2.0F};
  const auto probabilities = nin::softmax(logits, 3);
  ASSERT_EQ(probabilities.size(), 6U);
  EXPECT_FLOAT_EQ(probabilities[0], 0.5F);
  EXPECT_FLOAT_EQ(probabilities[2], 0.0F);
  EXPECT_FLOAT_EQ(std::accumulate(probabilities.begin() + 3, probabilities.end(), 0.0F), 1.0F);
  EXPECT_FLOAT_EQ(probabilities[5] / probabilities[4], std::exp(1.0F));
}

}  // namespace
