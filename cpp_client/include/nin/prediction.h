#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace nin {

/// One class of one image.
struct Prediction {
  std::size_t index;
  std::string label;
  float probability;  ///< in [0, 1]
};

/// What the network says of N images, row-major (N, classes).
struct Outputs {
  std::vector<float> logits;
  std::vector<float> probabilities;

  /// Puts the images of `more` behind these.
  void append(const Outputs& more);
};

/// The `k` most probable classes of each image, best first; of equals the lower index.
/// `probabilities` is (N, labels.size()); k is at least 1 and at most labels.size(), and every
/// probability a finite number, else Error.
[[nodiscard]] std::vector<std::vector<Prediction>> top_predictions(
    std::span<const float> probabilities, const std::vector<std::string>& labels, std::size_t k);

}  // namespace nin
