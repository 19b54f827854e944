#pragma once

#include <cstddef>
#include <functional>
#include <string>

namespace nin::tool {

struct Measured {
  std::size_t warmup;
  std::size_t repetitions;
  double first_ms;  ///< the very first call
  double mean_ms;   ///< of the calls after the warm-up, as are median and p95
  double median_ms;
  double p95_ms;
  double peak_memory_mib;  ///< of the process
  double heap_growth_kib;  ///< in use after the last call, less what was after the warm-up
};

/// Times `call`: a warm-up apart, then so many repetitions.
[[nodiscard]] Measured measure(const std::function<void()>& call, std::size_t repetitions);

/// Prints as "table" or "json".
void print_measured(const Measured& measured, std::size_t batch_size,
                    const std::string& description, const std::string& format);

}  // namespace nin::tool
