#include "benchmark.h"

#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "output.h"

namespace nin::tool {
namespace {

constexpr std::size_t warmup = 10;

double timed_ms(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

double heap_in_use_kib() {
  const struct mallinfo2 info = mallinfo2();
  return static_cast<double>(info.uordblks + info.hblkhd) / 1024;
}

/// Linux's own count. getrusage's would be at least the memory of the process that started this.
double peak_memory_mib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stod(line.substr(6)) / 1024;
  }
  return 0;
}

/// The smallest value that so large a share of all lies at or below.
double quantile(const std::vector<double>& sorted, double share) {
  const auto rank = std::ceil(share * static_cast<double>(sorted.size()));
  return sorted[static_cast<std::size_t>(rank) - 1];
}

}  // namespace

Measured measure(const std::function<void()>& call, std::size_t repetitions) {
  std::vector<double> times;
  times.reserve(repetitions);
  const double first = timed_ms(call);
  for (std::size_t i = 1; i < warmup; ++i) call();
  const double before = heap_in_use_kib();
  for (std::size_t i = 0; i < repetitions; ++i) times.push_back(timed_ms(call));
  const double growth = heap_in_use_kib() - before;
  const double mean =
      std::accumulate(times.begin(), times.end(), 0.0) / static_cast<double>(repetitions);
  std::sort(times.begin(), times.end());
  return {warmup,
          repetitions,
          first,
          mean,
          quantile(times, 0.5),
          quantile(times, 0.95),
          peak_memory_mib(),
          growth};
}

void print_measured(const Measured& measured, std::size_t batch_size,
                    const std::string& description, const std::string& format) {
  const double rate = static_cast<double>(batch_size) * 1000 / measured.mean_ms;
  if (format == "json") {
    const nlohmann::ordered_json data = {{"model", printable(description)},
                                         {"batch_size", batch_size},
                                         {"warmup", measured.warmup},
                                         {"repetitions", measured.repetitions},
                                         {"first_ms", measured.first_ms},
                                         {"mean_ms", measured.mean_ms},
                                         {"median_ms", measured.median_ms},
                                         {"p95_ms", measured.p95_ms},
                                         {"images_per_second", rate},
                                         {"peak_memory_mib", measured.peak_memory_mib},
                                         {"heap_growth_kib", measured.heap_growth_kib}};
    std::cout << data.dump(2) << '\n';
    return;
  }
  std::printf(
      "%s, batch %zu, %zu calls after %zu of warm-up\n"
      "median %.2f ms, p95 %.2f ms, %.1f images per second\n"
      "first call %.2f ms, peak memory %.0f MiB, heap growth %.1f KiB\n",
      printable(description).c_str(), batch_size, measured.repetitions, measured.warmup,
      measured.median_ms, measured.p95_ms, rate, measured.first_ms, measured.peak_memory_mib,
      measured.heap_growth_kib);
}

}  // namespace nin::tool
