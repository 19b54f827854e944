#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "nin/predictor.h"

namespace nin {

/// Throws Error where one of the outputs isn't a finite number: no class can be told from them.
void check_finite(const Outputs& outputs, std::size_t classes);

/// Probabilities (N, classes) of logits (N, classes).
[[nodiscard]] std::vector<float> softmax(std::span<const float> logits, std::size_t classes);

/// Throws Error unless so many numbers of this type are batches of what the model takes.
void check_input(const ModelInfo& info, ElementType type, std::size_t size);

}  // namespace nin
