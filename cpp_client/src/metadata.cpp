#include "metadata.h"

#include <array>
#include <cmath>

#include "json.h"
#include "nin/error.h"
#include "nin/files.h"
#include "text.h"

namespace nin {
namespace {

using nlohmann::json;

constexpr std::size_t golden_images_at_most = 4096;

/// Made when it's first asked for: a global object of an application may be the first to ask.
const std::array<Graph, 2>& known_graphs() {
  static const std::array<Graph, 2> graphs = {{
      {"nin", "image", false, {"logits"}},
      {"fashion_mnist", "pixels", true, {"logits", "probabilities"}},
  }};
  return graphs;
}

/// The contract of a graph in the form in which exports carry it: Graph.describe() in Python.
json describe(const Graph& graph, std::size_t classes) {
  json outputs = json::array();
  for (const std::string& name : graph.outputs) {
    outputs.push_back({{"name", name}, {"dtype", "float32"}, {"shape", {"batch", classes}}});
  }
  const json shape = graph.pixels ? json{"batch", 28, 28} : json{"batch", 1, 224, 224};
  return {
      {"graph", graph.name},
      {"input",
       {{"name", graph.input}, {"dtype", graph.pixels ? "uint8" : "float32"}, {"shape", shape}}},
      {"outputs", outputs},
      {"max_batch", max_batch}};
}

const Graph& known_graph(const json& contract, std::size_t classes) {
  const Graph* graph = find_graph(contract.at("graph").get<std::string>());
  if (graph == nullptr) {
    throw Error("its graph is " + one_line(contract.at("graph").dump()) +
                ", known are nin, fashion_mnist");
  }
  if (const json expected = describe(*graph, classes); contract != expected) {
    throw Error("its contract is " + one_line(contract.dump()) + ", expected " + expected.dump());
  }
  return *graph;
}

std::vector<std::uint8_t> decode_base64(const std::string& text) {
  std::vector<std::uint8_t> bytes;
  bytes.reserve(text.size() / 4 * 3);
  static const std::string alphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    if (c == '=') break;
    const auto value = alphabet.find(c);
    if (value == std::string::npos) throw Error("its golden pixels are no base64");
    bits = bits << 6 | static_cast<std::uint32_t>(value);
    count += 6;
    if (count >= 8) {
      count -= 8;
      bytes.push_back(static_cast<std::uint8_t>(bits >> count));
    }
  }
  return bytes;
}

std::vector<double> flatten(const json& rows, std::size_t count, std::size_t classes) {
  std::vector<double> values;
  for (const json& row : rows) {
    const auto numbers = row.get<std::vector<double>>();
    if (numbers.size() != classes) throw Error("its golden vectors have rows of another length");
    values.insert(values.end(), numbers.begin(), numbers.end());
  }
  if (values.size() != count * classes) {
    throw Error("its golden vectors have " + std::to_string(values.size()) + " values, expected " +
                std::to_string(count * classes));
  }
  return values;
}

Golden parse_golden(const json& data, const Graph& graph, std::size_t classes) {
  const auto count = data.at("shape").at(0).get<std::size_t>();
  if (count < 1 || count > golden_images_at_most) {
    throw Error("it carries " + std::to_string(count) + " golden images, expected 1 to " +
                std::to_string(golden_images_at_most));
  }
  Golden golden{decode_base64(data.at("pixels").get<std::string>()), {}, {}};
  if (golden.pixels.size() != count * image_pixels) {
    throw Error("its golden images have " + std::to_string(golden.pixels.size()) +
                " pixels, expected " + std::to_string(count * image_pixels));
  }
  for (const std::string& name : graph.outputs) {
    const auto budget = data.at("budget").at(name).get<double>();
    if (!std::isfinite(budget) || budget < 0) throw Error("its budget is no positive number");
    golden.budget[name] = budget;
    golden.outputs[name] = flatten(data.at("outputs").at(name), count, classes);
  }
  return golden;
}

const std::string& text_of(const std::map<std::string, std::string>& texts, const char* key) {
  const auto found = texts.find(key);
  if (found == texts.end() || found->second.empty()) {
    throw Error(std::string("it carries no ") + key + "; export it with this project");
  }
  return found->second;
}

}  // namespace

const Graph* find_graph(const std::string& name) {
  for (const Graph& graph : known_graphs()) {
    if (graph.name == name) return &graph;
  }
  return nullptr;
}

Metadata parse_metadata(const std::map<std::string, std::string>& texts) {
  try {
    auto labels = parse_json(text_of(texts, "labels")).get<std::vector<std::string>>();
    if (labels.empty() || labels.size() > classes_at_most) {
      throw Error("it has " + std::to_string(labels.size()) + " labels");
    }
    const Graph& graph = known_graph(parse_json(text_of(texts, "contract")), labels.size());
    Golden golden = parse_golden(parse_json(text_of(texts, "golden")), graph, labels.size());
    return {graph, std::move(labels), std::move(golden), text_of(texts, "weights_sha256")};
  } catch (const json::exception& error) {
    throw Error("its metadata can't be read: " + one_line(error.what()));
  }
}

}  // namespace nin
