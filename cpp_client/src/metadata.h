#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace nin {

/// The two graphs of the contract, src/nin/contract.py: tests hold the two against each other.
struct Graph {
  std::string name;
  std::string input;
  bool pixels;                       ///< takes uint8 pixels, else float images
  std::vector<std::string> outputs;  ///< `logits` first
};

/// The largest batch that is promised.
inline constexpr std::size_t max_batch = 64;

/// More classes than this, no file and no server may have.
inline constexpr std::size_t classes_at_most = 4096;

/// Images with the outputs that are right, and how far off an output may be.
struct Golden {
  std::vector<std::uint8_t> pixels;                    ///< (N, 28, 28)
  std::map<std::string, std::vector<double>> outputs;  ///< by name, each (N, labels)
  std::map<std::string, double> budget;                ///< by name, the largest absolute error
};

/// What an export says of itself.
struct Metadata {
  Graph graph;
  std::vector<std::string> labels;
  Golden golden;
  std::string weights_sha256;
};

/// The names of the texts that an export carries, and that parse_metadata needs.
inline constexpr const char* metadata_keys[] = {"contract", "labels", "golden", "weights_sha256"};

/// Reads them. Throws Error where one is missing, isn't what the exporters write, or the contract
/// isn't that of a graph known here.
[[nodiscard]] Metadata parse_metadata(const std::map<std::string, std::string>& texts);

/// A graph by its name; nullptr if there is none.
[[nodiscard]] const Graph* find_graph(const std::string& name);

}  // namespace nin
