#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nin/error.h"
#include "nin/files.h"
#include "nin/prediction.h"

namespace nin {

struct Options {
  std::string device = "cpu";  ///< "cpu", "cuda" or "cuda:N"
  bool replay = true;          ///< run the golden vectors that the file carries, before it is used
};

/// Runs a TorchScript export of this project, either graph, in this process by LibTorch.
///
/// Owns the module; movable, not copyable; a moved-from object may only be destroyed or assigned.
/// Several threads may call the const methods of one object at the same time. What is returned
/// belongs to the caller, except for the references of graph(), labels() and weights_sha256().
/// After fork(), the child may use its copy, or load another; each call uses one thread then. On
/// CUDA they throw Error.
class Classifier {
 public:
  /// Loads `model` onto the device, checks that its contract is known, and replays the golden
  /// vectors, together and one at a time: an export that doesn't reproduce them within its own
  /// budget is refused. Throws Error naming the file and the reason.
  explicit Classifier(const std::filesystem::path& model, const Options& options = {});
  ~Classifier();
  Classifier(Classifier&&) noexcept;
  Classifier& operator=(Classifier&&) noexcept;

  /// The most probable class of each image; `pixels` is (N, 28, 28), black is 0, N may be 0.
  /// Any N will do: large ones are run in parts. These methods throw Error where the size of the
  /// input is no multiple of an image's, LibTorch fails, or an output isn't a finite number.
  [[nodiscard]] std::vector<Prediction> classify(std::span<const std::uint8_t> pixels) const;

  /// The `k` most probable classes of each image, best first; k is 1 to labels().size().
  [[nodiscard]] std::vector<std::vector<Prediction>> top(std::span<const std::uint8_t> pixels,
                                                         std::size_t k) const;

  /// The raw logits, row-major (N, labels().size()).
  [[nodiscard]] std::vector<float> logits(std::span<const std::uint8_t> pixels) const;

  /// The same for images (N, 1, 224, 224) in [0, 1]; the graph must be `nin`, else Error.
  [[nodiscard]] std::vector<float> logits(std::span<const float> images) const;

  /// Logits and probabilities of one run.
  [[nodiscard]] Outputs run(std::span<const std::uint8_t> pixels) const;
  [[nodiscard]] Outputs run(std::span<const float> images) const;

  /// What the file says of itself: the graph, "nin" or "fashion_mnist", the classes in order, and
  /// the digest of the weights that it was exported from.
  [[nodiscard]] const std::string& graph() const;
  [[nodiscard]] const std::vector<std::string>& labels() const;
  [[nodiscard]] const std::string& weights_sha256() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// How many threads LibTorch uses inside one call; process-wide, to be set before the first call.
/// It uses every core unless told otherwise; after fork(), the child uses one, whatever it's told.
/// Throws Error for less than 1 or more than 1024.
void set_threads(int count);

}  // namespace nin
