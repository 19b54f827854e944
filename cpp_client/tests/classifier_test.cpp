#include "nin/classifier.h"

#include <gtest/gtest.h>
#include <malloc.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <thread>

#include "idx.h"

namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<std::uint8_t>;

/// The exports that the tests use: NIN_ARTIFACTS, else artifacts/ of the checkout.
fs::path artifact(const std::string& name) {
  const char* folder = std::getenv("NIN_ARTIFACTS");
  const fs::path path = fs::path(folder != nullptr ? folder : NIN_ARTIFACTS_DIR) / name;
  if (!fs::exists(path)) throw std::runtime_error("no " + path.string() + "; run `make export`");
  return path;
}

Bytes read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// The first so many test images, in the form that a model takes: pixels or float images.
Bytes test_pixels(std::size_t count) {
  const nin::Input input{"pixels", nin::ElementType::uint8, {28, 28}};
  auto found =
      nin::tool::decode_idx(read(fs::path(NIN_DATA_DIR) / "t10k-images-idx3-ubyte.gz"), input);
  found.pixels.resize(count * input.item_size());
  return found.pixels;
}

/// Each pixel eight times in both directions; how exactly they are enlarged doesn't matter here.
std::vector<float> test_images(std::size_t count) {
  constexpr std::size_t side = 28, scale = 8;
  const Bytes pixels = test_pixels(count);
  std::vector<float> images;
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t y = 0; y < side * scale; ++y) {
      for (std::size_t x = 0; x < side * scale; ++x) {
        const std::size_t at = (i * side + y / scale) * side + x / scale;
        images.push_back(static_cast<float>(pixels[at]) / 255);
      }
    }
  }
  return images;
}

/// A file that is gone at the end of the test.
class TemporaryFile {
 public:
  explicit TemporaryFile(const Bytes& bytes)
      : path_(fs::temp_directory_path() / ("nin_test_" + std::to_string(getpid()) + ".pt")) {
    std::ofstream(path_, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() { fs::remove(path_); }
  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

std::string error_of(const fs::path& model, const nin::Options& options = {}) {
  try {
    const nin::Classifier classifier(model, options);
  } catch (const nin::Error& error) {
    return error.what();
  }
  return "";
}

/// Sees that `text` has `part`, and that it is one line.
void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "found: " << text;
  EXPECT_EQ(text.find('\n'), std::string::npos) << "found: " << text;
}

class BothGraphs : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Classifier, BothGraphs, testing::Values("nin", "fashion_mnist"),
                         [](const auto& graph) { return std::string(graph.param); });

/// Calls `action` with the first test images as the model takes them.
template <typename Action>
auto with_images(const nin::Classifier& classifier, std::size_t count, const Action& action) {
  const bool pixels = classifier.info().input.type == nin::ElementType::uint8;
  if (pixels) return action(std::span<const std::uint8_t>(test_pixels(count)));
  return action(std::span<const float>(test_images(count)));
}

TEST_P(BothGraphs, SaysWhatItIs) {
  const nin::Classifier classifier(artifact(std::string(GetParam()) + ".pt"));
  EXPECT_EQ(classifier.graph(), GetParam());
  ASSERT_EQ(classifier.labels().size(), 10U);
  EXPECT_EQ(classifier.labels()[0], "T-shirt/top");
  EXPECT_EQ(classifier.labels()[9], "Ankle boot");
  EXPECT_EQ(classifier.info().max_batch, 64U);
  EXPECT_EQ(classifier.weights_sha256().size(), 64U);
}

TEST_P(BothGraphs, KnowsTheFirstTestImages) {
  const nin::Classifier classifier(artifact(std::string(GetParam()) + ".pt"));
  const auto found =
      with_images(classifier, 10, [&](auto images) { return classifier.classify(images); });
  const std::vector<std::size_t> labels = {9, 2, 1, 1, 6, 1, 4, 6, 5, 7};
  ASSERT_EQ(found.size(), labels.size());
  for (std::size_t i = 0; i < labels.size(); ++i) {
    EXPECT_EQ(found[i].index, labels[i]) << "image " << i;
    EXPECT_EQ(found[i].label, classifier.labels()[labels[i]]);
    EXPECT_GT(found[i].probability, 0.4F);
    EXPECT_LE(found[i].probability, 1.0F);
  }
}

TEST_P(BothGraphs, AnImageDoesNotDependOnItsBatch) {
  const nin::Classifier classifier(artifact(std::string(GetParam()) + ".pt"));
  constexpr std::size_t count = 70;  // more than the largest part
  const std::size_t item = classifier.info().input.item_size();
  with_images(classifier, count, [&](auto images) {
    const auto all = classifier.logits(images);
    ASSERT_EQ(all.size(), count * 10);
    for (const std::size_t i : {0U, 15U, 16U, 63U, 64U, 69U}) {
      const auto alone = classifier.logits(images.subspan(i * item, item));
      ASSERT_EQ(alone.size(), 10U);
      for (std::size_t k = 0; k < 10; ++k) EXPECT_NEAR(all[i * 10 + k], alone[k], 3e-5);
    }
  });
}

TEST_P(BothGraphs, NoImagesGiveNothing) {
  const nin::Classifier classifier(artifact(std::string(GetParam()) + ".pt"));
  with_images(classifier, 0, [&](auto images) {
    EXPECT_TRUE(classifier.classify(images).empty());
    EXPECT_TRUE(classifier.top(images, 3).empty());
    EXPECT_TRUE(classifier.logits(images).empty());
  });
}

TEST(Classifier, SaysHowItDecodesFiles) {
  const nin::Classifier classifier(artifact("fashion_mnist.pt"));
  ASSERT_TRUE(classifier.info().decoding);
  EXPECT_EQ(classifier.info().decoding->height, 28U);
  EXPECT_EQ(classifier.info().input.shape, (std::vector<std::size_t>{28, 28}));
  EXPECT_FALSE(nin::Classifier(artifact("nin.pt")).info().decoding);
}

TEST(Classifier, TopIsOrderedAndSumsToOne) {
  const nin::Classifier classifier(artifact("fashion_mnist.pt"));
  for (const auto& predictions : classifier.top(test_pixels(3), 10)) {
    ASSERT_EQ(predictions.size(), 10U);
    float sum = 0;
    for (const auto& prediction : predictions) sum += prediction.probability;
    EXPECT_NEAR(sum, 1, 1e-5);
    EXPECT_TRUE(std::is_sorted(predictions.begin(), predictions.end(),
                               [](auto& a, auto& b) { return a.probability > b.probability; }));
  }
}

TEST(Classifier, CanBeMoved) {
  nin::Classifier first(artifact("fashion_mnist.pt"));
  nin::Classifier second(std::move(first));
  first = std::move(second);
  EXPECT_EQ(first.classify(test_pixels(1)).front().label, "Ankle boot");
}

TEST(Classifier, RefusesInputOfAnotherSizeOrKind) {
  const nin::Classifier classifier(artifact("fashion_mnist.pt"));
  const auto message = [](const auto& action) -> std::string {
    try {
      action();
    } catch (const nin::Error& error) {
      return error.what();
    }
    return "";
  };
  expect_part(message([&] { (void)classifier.classify(Bytes(783)); }),
              "783 pixels are no multiple of 784");
  expect_part(message([&] { (void)classifier.logits(std::vector<float>(784)); }),
              "the model fashion_mnist takes pixels uint8 (N, 28, 28), not float images");
  expect_part(message([&] { (void)classifier.top(test_pixels(1), 11); }), "there are 10");
  expect_part(message([&] { (void)classifier.top(test_pixels(1), 0); }), "the 0 best classes");
  const nin::Classifier network(artifact("nin.pt"));
  expect_part(message([&] { (void)network.logits(std::vector<float>(50'000)); }),
              "50000 floats are no multiple of 50176");
  expect_part(message([&] { (void)network.classify(test_pixels(1)); }),
              "the model nin takes image float32 (N, 1, 224, 224), not pixels");
  expect_part(message([&] { (void)network.decode({}); }), "takes float images, no image files");
  expect_part(message([] { nin::set_threads(0); }), "can't use 0 threads");
  expect_part(message([] { nin::set_threads(1'000'000); }), "can't use 1000000 threads");
}

TEST(Classifier, RefusesFilesThatAreNoExport) {
  expect_part(error_of("no/such.pt"), "no model file at no/such.pt");
  expect_part(error_of(fs::temp_directory_path()), "is not a file");
  expect_part(error_of(TemporaryFile({}).path()), "it has 0 bytes");
  expect_part(error_of(TemporaryFile(Bytes(1000, 'x')).path()), "is not a whole TorchScript file");
  const Bytes whole = read(artifact("fashion_mnist.pt"));
  for (std::size_t tenth = 1; tenth < 10; ++tenth) {
    Bytes part = whole;
    part.resize(whole.size() * tenth / 10);
    expect_part(error_of(TemporaryFile(part).path()), "is not a whole TorchScript file");
  }
}

TEST(Classifier, GoldenVectorsCatchTamperedWeights) {
  Bytes bytes = read(artifact("fashion_mnist.pt"));
  std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(bytes.size() / 2), 64, std::uint8_t{60});
  const TemporaryFile tampered(bytes);
  expect_part(error_of(tampered.path()), "golden vectors: logits is off by");
  EXPECT_EQ(error_of(tampered.path(), {.replay = false}), "");
}

TEST(Classifier, RefusesUnknownAndMissingDevices) {
  const auto model = artifact("fashion_mnist.pt");
  for (const char* device : {"", "tpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "CPU"}) {
    expect_part(error_of(model, {.device = device}), "expected cpu, cuda or cuda:N");
  }
  expect_part(error_of(model, {.device = "cuda:99"}), "no device cuda:99");
}

/// Run under ThreadSanitizer too: the preset `tsan`.
class Threads : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Classifier, Threads, testing::Values("nin", "fashion_mnist"),
                         [](const auto& graph) { return std::string(graph.param); });

TEST_P(Threads, ShareOneClassifier) {
  nin::set_threads(1);  // as many callers as cores need no threads inside
  const nin::Classifier classifier(artifact(std::string(GetParam()) + ".pt"));
  std::vector<std::vector<float>> found(4);
  const auto expected = with_images(classifier, 8, [&](auto images) {
    std::vector<std::thread> threads;
    for (auto& mine : found) {
      threads.emplace_back([&] {
        for (int call = 0; call < 5; ++call) mine = classifier.logits(images);
      });
    }
    for (auto& thread : threads) thread.join();
    return classifier.logits(images);
  });
  for (const auto& mine : found) EXPECT_EQ(mine, expected);
}

TEST_P(Threads, MayLoadAtTheSameTime) {
  nin::set_threads(1);
  std::vector<std::string> found(3);
  std::vector<std::thread> threads;
  for (auto& mine : found) {
    threads.emplace_back([&] {
      const nin::Classifier classifier(artifact(std::string(GetParam()) + ".pt"),
                                       {.replay = false});
      mine = with_images(classifier, 1,
                         [&](auto images) { return classifier.classify(images).front().label; });
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& mine : found) EXPECT_EQ(mine, "Ankle boot");
}

/// The exit code of a child in which `action` runs: 9 if it hangs, 1 if it throws.
int code_of_child(const std::function<bool()>& action) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(30);  // its signal ends the child
    try {
      _exit(action() ? 0 : 2);
    } catch (...) {
      _exit(1);
    }
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 9;
}

#if !defined(__SANITIZE_THREAD__)  // it knows no threads in a child
TEST(Fork, AChildMayUseWhatItsParentUsed) {
  nin::set_threads(2);
  const auto model = artifact("fashion_mnist.pt");
  const nin::Classifier classifier(model);
  const auto pixels = test_pixels(16);
  const auto expected = classifier.logits(pixels);
  const auto near = [&](const std::vector<float>& found) {
    const auto close = [](float a, float b) { return std::abs(a - b) < 3e-5F; };
    return std::ranges::equal(found, expected, close);
  };
  EXPECT_EQ(code_of_child([&] { return near(classifier.logits(pixels)); }), 0);
  EXPECT_EQ(code_of_child([&] { return near(nin::Classifier(model).logits(pixels)); }), 0);
  EXPECT_EQ(code_of_child([&] {
              nin::set_threads(2);  // it stays at one
              bool right = false;
              std::thread([&] { right = near(classifier.logits(pixels)); }).join();
              return right && near(classifier.logits(pixels));
            }),
            0);
  EXPECT_EQ(code_of_child([&] {  // a grandchild
              return code_of_child([&] { return near(classifier.logits(pixels)); }) == 0;
            }),
            0);
  EXPECT_EQ(classifier.logits(pixels), expected);  // and the parent goes on
}
#endif

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they replace malloc
TEST(Classifier, CallsLeaveNothingOnTheHeap) {
  const nin::Classifier classifier(artifact("fashion_mnist.pt"), {.replay = false});
  const auto pixels = test_pixels(1);
  const auto in_use = [] {
    const auto info = mallinfo2();
    return info.uordblks + info.hblkhd;
  };
  for (int call = 0; call < 20; ++call) (void)classifier.classify(pixels);
  const std::size_t before = in_use();
  for (int call = 0; call < 200; ++call) (void)classifier.classify(pixels);
  EXPECT_LT(in_use(),
            before + 100 * 200);  // less than 100 bytes a call: nothing of an image's size
}
#endif

}  // namespace
