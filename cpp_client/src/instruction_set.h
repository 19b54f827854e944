#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace nin {

/// Whether the CPU has a feature, by the name that GCC and clang give it.
using HasFeature = std::function<bool(std::string_view)>;

/// Of the CPU that this runs on.
[[nodiscard]] bool cpu_has(std::string_view feature);

/// Throws Error unless a CPU can run machine code for an instruction set: one of those that the
/// exporter knows (nin/export/instruction_sets.py).
void check_instruction_set(const std::string& name, const HasFeature& has = cpu_has);

}  // namespace nin
