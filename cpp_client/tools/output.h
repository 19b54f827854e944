#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nin/prediction.h"

namespace nin::tool {

/// The text as a terminal can show it: control characters and bytes that aren't UTF-8 become \xNN.
[[nodiscard]] std::string printable(std::string_view text);

/// Prints the results of all images as "table", "json", "csv" or "f32".
/// `top` has one entry for each name; `logits` is (N, classes).
void print(const std::string& format, const std::vector<std::string>& names,
           const std::vector<std::vector<Prediction>>& top, const std::vector<float>& logits);

/// The share of images whose best class is the label; below a table, else on stderr.
void print_accuracy(const std::string& format, const std::vector<std::vector<Prediction>>& top,
                    const std::vector<std::uint32_t>& labels);

}  // namespace nin::tool
