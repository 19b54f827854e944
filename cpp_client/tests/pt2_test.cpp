// A .pt2 package: what tests/test_cpp_pt2.py can't ask of a program. NIN_PACKAGES names the folder
// with lenet.pt2, which tests/conftest.py makes.

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <thread>
#include <vector>

#include "nin/classifier.h"

namespace {

class Pt2 : public testing::Test {
 protected:
  void SetUp() override {
    const char* folder = std::getenv("NIN_PACKAGES");
    if (folder == nullptr) GTEST_SKIP() << "NIN_PACKAGES names no folder with lenet.pt2";
    path_ = std::filesystem::path(folder) / "lenet.pt2";
    classifier_.emplace(path_);
  }

  /// So many images of no meaning, each different.
  [[nodiscard]] std::vector<float> images(std::size_t count) const {
    std::vector<float> values(count * classifier_->info().input.item_size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = std::sin(static_cast<float>(i % 9973));
    }
    return values;
  }

  std::filesystem::path path_;
  std::optional<nin::Classifier> classifier_;
};

bool near(const std::vector<float>& found, const std::vector<float>& expected) {
  return std::ranges::equal(found, expected,
                            [](float a, float b) { return std::abs(a - b) < 1e-4F; });
}

TEST_F(Pt2, AnImageDoesNotDependOnItsBatch) {
  nin::set_threads(2);
  const std::size_t item = classifier_->info().input.item_size();
  const auto all = images(23);
  std::vector<float> alone;
  for (std::size_t i = 0; i < 23; ++i) {
    const auto one = classifier_->logits(std::span(all).subspan(i * item, item));
    alone.insert(alone.end(), one.begin(), one.end());
  }
  EXPECT_TRUE(near(classifier_->logits(all), alone));
  EXPECT_TRUE(classifier_->logits(std::vector<float>()).empty());
}

TEST_F(Pt2, ThreadsMayShareOneClassifier) {
  nin::set_threads(2);
  const auto batch = images(9);
  const auto expected = classifier_->logits(batch);
  std::vector<std::vector<float>> found(4);
  std::vector<std::thread> threads;
  for (auto& mine : found) {
    threads.emplace_back([&] {
      for (int call = 0; call < 5; ++call) mine = classifier_->logits(batch);
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& mine : found) EXPECT_TRUE(near(mine, expected));
}

#if !defined(__SANITIZE_THREAD__)  // it knows no threads in a child
TEST_F(Pt2, AChildMayUseWhatItsParentUsed) {
  nin::set_threads(2);
  const auto batch = images(9);
  const auto expected = classifier_->logits(batch);
  const pid_t child = fork();
  if (child == 0) {
    alarm(30);  // its signal ends the child
    const bool right = near(classifier_->logits(batch), expected) &&
                       near(nin::Classifier(path_).logits(batch), expected);
    _exit(right ? 0 : 2);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_TRUE(near(classifier_->logits(batch), expected));  // and the parent goes on
}
#endif

}  // namespace
