#include "nin/predictor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "outputs.h"

namespace {

using Bytes = std::vector<std::uint8_t>;

/// Grey images of 1x2: each pixel is the logit of a class.
class Fake final : public nin::Predictor {
 public:
  explicit Fake(std::optional<nin::Decoding> decoding)
      : info_{"fake", {"pixels", nin::ElementType::uint8, {1, 2}}, {"left", "right"}, 4, decoding} {
  }

  [[nodiscard]] const nin::ModelInfo& info() const override { return info_; }

  [[nodiscard]] nin::Outputs run(std::span<const std::uint8_t> pixels) const override {
    nin::check_input(info_, nin::ElementType::uint8, pixels.size());
    const std::vector<float> logits(pixels.begin(), pixels.end());
    return {logits, nin::softmax(logits, 2)};
  }

  [[nodiscard]] nin::Outputs run(std::span<const float> images) const override {
    nin::check_input(info_, nin::ElementType::float32, images.size());
    return {};
  }

 private:
  nin::ModelInfo info_;
};

constexpr nin::Decoding stretched{
    nin::Decoding::Mode::grey,      nin::Decoding::Resize::stretch, 1, 2, 0,
    nin::Decoding::Filter::bilinear};

template <typename Action>
std::string error_of(const Action& action) {
  try {
    (void)action();
  } catch (const nin::Error& error) {
    return error.what();
  }
  return "";
}

TEST(Predictor, AnyWillDo) {
  const Fake fake(std::nullopt);
  const nin::Predictor& predictor = fake;
  EXPECT_EQ(predictor.graph(), "fake");
  EXPECT_EQ(predictor.logits(Bytes{1, 2}), (std::vector<float>{1, 2}));
  const auto best = predictor.classify(Bytes{1, 2, 9, 8});
  ASSERT_EQ(best.size(), 2U);
  EXPECT_EQ(best[0].label, "right");
  EXPECT_EQ(best[1].label, "left");
  EXPECT_EQ(predictor.top(Bytes{1, 2}, 2).front().back().label, "left");
  EXPECT_TRUE(predictor.classify(Bytes{}).empty());
}

TEST(Predictor, SaysWhatTheModelTakes) {
  const Fake fake(std::nullopt);
  EXPECT_EQ(error_of([&] { return fake.classify(Bytes(3)); }),
            "3 pixels are no multiple of 2, the size of an image");
  EXPECT_EQ(error_of([&] { return fake.classify(std::vector<float>(2)); }),
            "the model fake takes pixels uint8 (N, 1, 2), not float images");
  EXPECT_EQ(error_of([&] { return fake.decode({}); }),
            "the model fake doesn't say how it takes image files; decode them to its pixels by "
            "nin::decode_image, or export and publish it again");
}

TEST(Predictor, SaysWhichFileIsDamaged) {
  const Fake fake(stretched);
  EXPECT_TRUE(fake.classify_files({}).empty());
  EXPECT_EQ(error_of([&] { return fake.classify_files(std::vector<Bytes>(2)); }),
            "file 0 of 2: 0 bytes, expected a PNG or JPEG file");
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
