#pragma once

#include <CLI/CLI.hpp>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "nin/predictor.h"

/// What nin_classify and nin_triton share: options, reading files, printing.
namespace nin::tool {

struct Options {
  std::vector<std::string> files;
  std::optional<std::size_t> batch_size;  ///< else 16, or what the model takes
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
  std::shared_ptr<const Predictor> predictor;
};

void add_options(CLI::App& app, Options& options);

/// Opens the backend, reads the files as it takes them, classifies, prints. Throws Error.
void classify_files(const Options& options, const std::function<Backend()>& open);

/// Parses the command line and runs `action`; the exit code: 0 fine, 2 with one line on stderr.
int run(CLI::App& app, int argc, char** argv, const std::function<void()>& action);

}  // namespace nin::tool
