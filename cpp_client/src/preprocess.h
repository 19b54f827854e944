#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace nin {

/// Pixels (N, 28, 28) to the network's images (N, 1, 224, 224): divided by 255 and enlarged by 8,
/// bilinearly, as torch's interpolate does without align_corners.
[[nodiscard]] std::vector<float> preprocess(std::span<const std::uint8_t> pixels);

/// Probabilities (N, classes) of logits (N, classes).
[[nodiscard]] std::vector<float> softmax(std::span<const float> logits, std::size_t classes);

}  // namespace nin
