#include "instruction_set.h"

#include <array>
#include <span>

#include "nin/error.h"
#include "text.h"

namespace nin {
namespace {

constexpr std::array<std::string_view, 12> features = {
    "avx2",    "fma",      "f16c",     "bmi",      "bmi2",     "lzcnt",
    "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni"};

struct InstructionSet {
  std::string_view name;
  std::size_t features;  ///< so many of the first
};

constexpr std::array<InstructionSet, 3> sets = {
    InstructionSet{"avx2", 6}, InstructionSet{"avx512", 11}, InstructionSet{"avx512_vnni", 12}};

}  // namespace

bool cpu_has(std::string_view feature) {
#if defined(__x86_64__)
  // the compilers' builtin takes literals only
  const std::array<bool, features.size()> found = {
      __builtin_cpu_supports("avx2") != 0,     __builtin_cpu_supports("fma") != 0,
      __builtin_cpu_supports("f16c") != 0,     __builtin_cpu_supports("bmi") != 0,
      __builtin_cpu_supports("bmi2") != 0,     __builtin_cpu_supports("lzcnt") != 0,
      __builtin_cpu_supports("avx512f") != 0,  __builtin_cpu_supports("avx512bw") != 0,
      __builtin_cpu_supports("avx512cd") != 0, __builtin_cpu_supports("avx512dq") != 0,
      __builtin_cpu_supports("avx512vl") != 0, __builtin_cpu_supports("avx512vnni") != 0};
  for (std::size_t i = 0; i < features.size(); ++i) {
    if (features[i] == feature) return found[i];
  }
#endif
  return false;
}

void check_instruction_set(const std::string& name, const HasFeature& has) {
  std::string known;
  for (const InstructionSet& instructions : sets) {
    known += (known.empty() ? "" : ", ") + std::string(instructions.name);
    if (name != instructions.name) continue;
    for (const std::string_view feature : std::span(features).first(instructions.features)) {
      if (has(feature)) continue;
      throw Error("it holds machine code for " + name + ", but this CPU has no " +
                  std::string(feature) +
                  "; export it on a machine like this one, or use the .pt file");
    }
    return;
  }
  throw Error("it holds machine code for '" + one_line(name) + "', known are " + known +
              "; export it with this version of the project");
}

}  // namespace nin
