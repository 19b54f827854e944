#pragma once

#include <CLI/CLI.hpp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "nin/prediction.h"

/// What nin_classify and nin_triton share: options, reading files, printing.
namespace nin::tool {

struct Options {
  std::vector<std::string> files;
  std::size_t batch_size = 16;
  std::size_t top = 1;
  std::size_t limit = 0;  ///< images of every IDX file; 0 is all
  std::string format = "table";
  std::optional<std::string> labels;
  bool benchmark = false;
  std::size_t repetitions = 50;
};

/// What classifies: in process or by a server.
struct Backend {
  std::string description;  ///< for the benchmark's output
  std::vector<std::string> labels;
  std::function<Outputs(std::span<const std::uint8_t>)> run_pixels;
  std::function<Outputs(std::span<const float>)> run_images;
};

void add_options(CLI::App& app, Options& options);

/// Reads the files, opens the backend, classifies, prints. Throws Error.
void classify_files(const Options& options, const std::function<Backend()>& open);

/// Parses the command line and runs `action`; the exit code: 0 fine, 2 with one line on stderr.
int run(CLI::App& app, int argc, char** argv, const std::function<void()>& action);

}  // namespace nin::tool
