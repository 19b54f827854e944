#include "nin/prediction.h"

#include <gtest/gtest.h>

#include <limits>

#include "nin/error.h"

namespace {

const std::vector<std::string> labels = {"a", "b", "c"};

TEST(Prediction, TheMostProbableComeFirst) {
  const std::vector<float> probabilities = {0.1F, 0.7F, 0.2F, 0.5F, 0.2F, 0.3F};
  const auto top = nin::top_predictions(probabilities, labels, 2);
  ASSERT_EQ(top.size(), 2U);
  ASSERT_EQ(top[0].size(), 2U);
  EXPECT_EQ(top[0][0].index, 1U);
  EXPECT_EQ(top[0][0].label, "b");
  EXPECT_EQ(top[0][0].probability, 0.7F);
  EXPECT_EQ(top[0][1].label, "c");
  EXPECT_EQ(top[1][0].label, "a");
  EXPECT_EQ(top[1][1].label, "c");
}

TEST(Prediction, OfEqualsTheLowerIndexIsFirst) {
  const std::vector<float> probabilities = {0.2F, 0.4F, 0.4F};
  const auto top = nin::top_predictions(probabilities, labels, 3);
  EXPECT_EQ(top[0][0].index, 1U);
  EXPECT_EQ(top[0][1].index, 2U);
  EXPECT_EQ(top[0][2].index, 0U);
}

TEST(Prediction, RefusesProbabilitiesThatAreNotFinite) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (const float odd : {nan, -nan, infinity, -infinity}) {
    const std::vector<float> probabilities = {0.1F, 0.7F, 0.2F, 0.3F, odd, 0.2F};
    EXPECT_THROW((void)nin::top_predictions(probabilities, labels, 1), nin::Error);
  }
}

TEST(Prediction, NoImagesGiveNoPredictions) {
  EXPECT_TRUE(nin::top_predictions({}, labels, 1).empty());
}

TEST(Prediction, RefusesACountThatIsNotOneOfTheClasses) {
  const std::vector<float> probabilities = {0.2F, 0.4F, 0.4F};
  EXPECT_THROW((void)nin::top_predictions(probabilities, labels, 0), nin::Error);
  EXPECT_THROW((void)nin::top_predictions(probabilities, labels, 4), nin::Error);
  EXPECT_THROW((void)nin::top_predictions(std::span(probabilities).first(2), labels, 1),
               nin::Error);
}

}  // namespace
