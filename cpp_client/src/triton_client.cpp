#include "nin/triton_client.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "http.h"
#include "json.h"
#include "metadata.h"
#include "outputs.h"
#include "text.h"

namespace nin {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the protocol's tensors are");

/// On average, of all classes: VALUE:INDEX:LABEL and its quotes.
constexpr std::size_t label_bytes_at_most = 512;

/// The library's messages begin with "[json.exception.parse_error.101] ".
std::string reason_of(const json::exception& error) {
  const std::string_view text(error.what());
  const std::size_t end = text.find("] ");
  return one_line(end == std::string_view::npos ? text : text.substr(end + 2));
}

/// Triton doesn't decode %XX in a path, so that other names couldn't be asked for anyway.
const std::string& checked_model(const std::string& name) {
  const auto fits = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("_-.").find(c) != std::string_view::npos;
  };
  const bool dots = name.find_first_not_of('.') == std::string::npos;  // curl would walk up
  if (dots || !std::all_of(name.begin(), name.end(), fits)) {
    throw Error("'" + one_line(name) + "' isn't a model's name; write letters, digits, _ - and .");
  }
  return name;
}

// --- the protocol's JSON ---

/// What the server says of its failure: {"error": ...}, or else the first line.
std::string reason_of(const std::string& body) {
  const json parsed = json::parse(body, nullptr, false);
  if (parsed.is_object() && parsed.contains("error") && parsed["error"].is_string()) {
    return one_line(parsed["error"].get_ref<const std::string&>());
  }
  const std::string_view line(body.data(), std::min(body.find_first_of("\r\n"), body.size()));
  return line.empty() ? "no reason given" : one_line(line);
}

/// A whole number from 0 on; the library's own conversion would take -1, 0.5 and true.
std::size_t to_size(const json& number) {
  if (!number.is_number_unsigned()) throw Error(one_line(number.dump()) + " is no size");
  return number.get<std::size_t>();
}

/// "logits FP32 [-1,10]".
std::string describe(const json& tensor) {
  return tensor.at("name").get<std::string>() + ' ' + tensor.at("datatype").get<std::string>() +
         ' ' + tensor.at("shape").dump();
}

std::string describe_all(const json& tensors) {
  std::string all;
  for (const json& tensor : tensors) all += (all.empty() ? "" : ", ") + describe(tensor);
  return all.empty() ? "nothing" : all;
}

/// The input of a model that classifies; none where it takes something else.
std::optional<Input> read_input(const json& inputs) {
  if (inputs.size() != 1) return std::nullopt;
  const json& tensor = inputs.at(0);
  const std::string type = tensor.at("datatype").get<std::string>();
  const json& shape = tensor.at("shape");
  if ((type != "UINT8" && type != "FP32") || shape.empty() || shape.at(0) != -1) {
    return std::nullopt;
  }
  Input input{tensor.at("name").get<std::string>(),
              type == "UINT8" ? ElementType::uint8 : ElementType::float32,
              {}};
  for (std::size_t i = 1; i < shape.size(); ++i) input.shape.push_back(to_size(shape.at(i)));
  return input;
}

/// The first tensor of a name; throws where there is none.
const json& named(const json& tensors, const std::string& name) {
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [&](const json& tensor) { return tensor.at("name") == name; });
  if (found == tensors.end()) throw Error("there is no output " + name);
  return *found;
}

/// The label of "value:index:label" goes to its index.
void put_label(std::vector<std::string>& labels, const std::string& text) {
  const std::size_t first = std::min(text.find(':'), text.size());
  const std::size_t second = std::min(text.find(':', first + 1), text.size());
  const char* end = text.data() + second;
  std::size_t index = 0;
  const auto parsed = std::from_chars(text.data() + std::min(first + 1, second), end, index);
  if (parsed.ec != std::errc() || parsed.ptr != end || index >= labels.size()) {
    throw Error("'" + one_line(text) + "' is no VALUE:INDEX:LABEL of " +
                std::to_string(labels.size()) + " classes");
  }
  labels[index] = text.substr(std::min(second + 1, text.size()));
}

/// The names of the models that statistics are of: those that are ready, by each of their versions.
std::set<std::string> ready_models(const json& statistics) {
  std::set<std::string> names;
  for (const json& model : statistics.at("model_stats")) {
    names.insert(model.at("name").get<std::string>());
  }
  return names;
}

std::vector<float> to_floats(std::string_view bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

}  // namespace

struct TritonClient::Impl {
  explicit Impl(const TritonOptions& options);

  // Asking for what the model is; `unknown` says what it means that the server knows nothing there.
  std::string find_model();
  json ask(const std::string& where, const std::string& unknown);
  void read_contract(const json& metadata);
  void read_config(const json& config);
  void read_labels();

  // Classifying: `input` is a batch of `count` images, in the form that the graph takes.
  [[nodiscard]] json make_request(std::size_t count, std::size_t bytes, const json& wanted) const;
  Answer infer(const json& request, std::span<const std::byte> input, std::size_t output_bytes);
  Outputs infer_batch(std::span<const std::byte> input, std::size_t count);
  [[nodiscard]] std::pair<json, std::string_view> split(const Answer& answer) const;
  [[nodiscard]] Outputs read_outputs(const Answer& answer, std::size_t count) const;

  template <typename T>
  Outputs run(std::span<const T> input, ElementType type);

  /// Runs what reads an answer, and says whose answer it was where that fails.
  template <typename Read>
  auto readable(Read read) const {
    try {
      return read();
    } catch (const json::exception& error) {
      connection.fail("gives an answer that can't be read: " + reason_of(error) +
                      "; is it a Triton server's HTTP port?");
    } catch (const Error& error) {
      connection.fail("gives an answer that can't be right: " + std::string(error.what()));
    }
  }

  Connection connection;
  std::string path;
  ModelInfo info{};
  std::vector<std::string> outputs;  ///< their names, `logits` first
};

TritonClient::Impl::Impl(const TritonOptions& options)
    : connection(options.url, options.timeout_s) {
  info.graph = options.model.empty() ? find_model() : checked_model(options.model);
  path = "/v2/models/" + info.graph;
  const std::string unknown = "has no model " + info.graph;
  read_contract(ask(path, unknown));
  read_config(ask(path + "/config", unknown));
  read_labels();
}

/// The only M that is ready together with an M_image, which decodes files for it. Statistics list
/// the models as well as the repository's index does, which servers keep to themselves.
std::string TritonClient::Impl::find_model() {
  const json statistics = ask("/v2/models/stats", "doesn't list its models, name one");
  const std::set<std::string> ready = readable([&] { return ready_models(statistics); });
  std::vector<std::string> found;
  std::ranges::copy_if(ready, std::back_inserter(found),
                       [&](const std::string& name) { return ready.contains(name + "_image"); });
  if (found.size() == 1) return readable([&] { return checked_model(found.front()); });
  std::string names;
  const std::vector<std::string> all(ready.begin(), ready.end());
  for (const std::string& name : found.empty() ? all : found) {
    names += (names.empty() ? "" : ", ") + name;
  }
  connection.fail("has " + std::to_string(found.size()) +
                  " models M with an M_image beside it; name the model, one of: " +
                  (names.empty() ? "none is ready" : one_line(names)));
}

json TritonClient::Impl::ask(const std::string& where, const std::string& unknown) {
  const Answer answer = connection.get(where);
  const std::string status = std::to_string(answer.status);
  if (answer.status == 400 || answer.status == 404) {
    connection.fail(unknown + ": " + reason_of(answer.body));
  }
  if (answer.status != 200) {
    connection.fail("answers with HTTP " + status + ": " + reason_of(answer.body));
  }
  return readable([&] { return parse_json(answer.body); });
}

/// The input, and by the outputs the number of classes.
void TritonClient::Impl::read_contract(const json& metadata) {
  const auto [taken, given] = readable([&] {
    return std::pair(describe_all(metadata.at("inputs")), describe_all(metadata.at("outputs")));
  });
  const auto input = readable([&] { return read_input(metadata.at("inputs")); });
  if (!input || !is_usable(*input)) {
    connection.fail("can't be used: model " + info.graph + " takes " + one_line(taken) +
                    ", expected UINT8 [-1,H,W] or [-1,H,W,3], or FP32 [-1,C,H,W]");
  }
  info.input = *input;
  outputs = output_names(info.input);
  const std::size_t classes = readable(
      [&] { return to_size(named(metadata.at("outputs"), outputs.front()).at("shape").at(1)); });
  for (const std::string& name : outputs) {
    const std::string expected = name + " FP32 [-1," + std::to_string(classes) + "]";
    const std::string found =
        readable([&] { return describe(named(metadata.at("outputs"), name)); });
    if (found != expected || classes < 2 || classes > classes_at_most) {
      connection.fail("can't be used: model " + info.graph + " gives " + one_line(given) +
                      ", expected " + name + " FP32 [-1,CLASSES] of 2 to " +
                      std::to_string(classes_at_most));
    }
  }
  info.labels.resize(classes);
}

void TritonClient::Impl::read_config(const json& config) {
  const std::size_t found = readable([&] { return to_size(config.at("max_batch_size")); });
  if (found == 0) {
    connection.fail("can't be used: model " + info.graph +
                    " takes no batches; its config.pbtxt needs a max_batch_size of 1 or more");
  }
  info.max_batch = std::min(found, batch_at_most);
  const json::json_pointer files("/parameters/files/string_value");
  readable([&] {
    if (info.input.type != ElementType::uint8 || !config.contains(files)) return;
    const json parsed = parse_json(config.at(files).get_ref<const std::string&>());
    info.decoding = parse_decoding(parsed, info.input);
  });
}

/// By the classification extension, on an image of zeros: all classes of the last output.
void TritonClient::Impl::read_labels() {
  std::vector<std::string>& labels = info.labels;
  const std::string& name = outputs.back();
  const std::size_t number = info.input.type == ElementType::uint8 ? 1 : sizeof(float);
  const std::vector<std::byte> zeros(info.input.item_size() * number);
  const json wanted = {{"name", name}, {"parameters", {{"classification", labels.size()}}}};
  const json request = make_request(1, zeros.size(), json::array({wanted}));
  const Answer answer = infer(request, zeros, labels.size() * label_bytes_at_most);
  readable([&] {
    const json parsed = parse_json(answer.body);
    const auto texts = named(parsed.at("outputs"), name).at("data").get<std::vector<std::string>>();
    for (const std::string& text : texts) put_label(labels, text);
  });
  if (std::find(labels.begin(), labels.end(), "") != labels.end()) {
    connection.fail("can't be used: it gives no labels for some of the " +
                    std::to_string(labels.size()) + " classes of model " + info.graph +
                    "; its config.pbtxt needs a label_filename for " + name);
  }
}

json TritonClient::Impl::make_request(std::size_t count, std::size_t bytes,
                                      const json& wanted) const {
  json shape = json::array({count});
  for (const std::size_t size : info.input.shape) shape.push_back(size);
  json input = {{"name", info.input.name},
                {"datatype", info.input.type == ElementType::uint8 ? "UINT8" : "FP32"},
                {"shape", shape},
                {"parameters", {{"binary_data_size", bytes}}}};
  return {{"inputs", json::array({std::move(input)})}, {"outputs", wanted}};
}

Answer TritonClient::Impl::infer(const json& request, std::span<const std::byte> input,
                                 std::size_t output_bytes) {
  Answer answer =
      connection.post(path + "/infer", request.dump(), input, json_bytes_at_most + output_bytes);
  if (answer.status != 200) {
    connection.fail("answers with HTTP " + std::to_string(answer.status) + ": " +
                    reason_of(answer.body));
  }
  return answer;
}

Outputs TritonClient::Impl::infer_batch(std::span<const std::byte> input, std::size_t count) {
  json wanted = json::array();
  for (const std::string& name : outputs) {
    wanted.push_back({{"name", name}, {"parameters", {{"binary_data", true}}}});
  }
  const std::size_t output_bytes = outputs.size() * count * info.labels.size() * sizeof(float);
  const Answer answer = infer(make_request(count, input.size(), wanted), input, output_bytes);
  return readable([&] { return read_outputs(answer, count); });
}

/// The JSON of an answer, and the tensors after it.
std::pair<json, std::string_view> TritonClient::Impl::split(const Answer& answer) const {
  const std::string_view body(answer.body);
  if (!answer.json_size) throw Error("it has no header Inference-Header-Content-Length");
  const std::string& text = *answer.json_size;
  const char* end = text.data() + text.size();
  std::size_t size = 0;
  const auto parsed = std::from_chars(text.data(), end, size);
  if (parsed.ec != std::errc() || parsed.ptr != end || size > body.size()) {
    throw Error("its Inference-Header-Content-Length is '" + one_line(text) + "', its body has " +
                std::to_string(body.size()) + " bytes");
  }
  if (size > json_bytes_at_most) throw Error("it has " + std::to_string(size) + " bytes of JSON");
  return {parse_json(body.substr(0, size)), body.substr(size)};
}

/// An ensemble's outputs come in the order in which its steps end: they are told apart by name.
Outputs TritonClient::Impl::read_outputs(const Answer& answer, std::size_t count) const {
  const auto [header, all] = split(answer);
  std::string_view rest = all;
  std::map<std::string, std::vector<float>> found;
  for (const json& output : header.at("outputs")) {
    const auto name = output.at("name").get<std::string>();
    const std::string expected =
        name + " FP32 [" + std::to_string(count) + ',' + std::to_string(info.labels.size()) + ']';
    const std::size_t size = to_size(output.at("parameters").at("binary_data_size"));
    if (describe(output) != expected || size != count * info.labels.size() * sizeof(float)) {
      throw Error(one_line(describe(output)) + " of " + std::to_string(size) + " bytes, expected " +
                  one_line(expected));
    }
    if (size > rest.size()) {
      throw Error("it ends in the middle of " + one_line(name) + ": " +
                  std::to_string(rest.size()) + " of " + std::to_string(size) + " bytes");
    }
    found[name] = to_floats(rest.substr(0, size));
    rest.remove_prefix(size);
  }
  if (!rest.empty()) {
    throw Error("it has " + std::to_string(rest.size()) + " bytes after its outputs");
  }
  for (const std::string& name : outputs) {
    if (!found.contains(name)) throw Error("there is no output " + name);
  }
  Outputs all_found{std::move(found["logits"]), {}};
  all_found.probabilities = info.input.type == ElementType::uint8
                                ? std::move(found["probabilities"])
                                : softmax(all_found.logits, info.labels.size());
  return all_found;
}

template <typename T>
Outputs TritonClient::Impl::run(std::span<const T> input, ElementType type) {
  check_input(info, type, input.size());
  const std::size_t item = info.input.item_size();
  Outputs all;
  for (std::size_t start = 0; start < input.size(); start += info.max_batch * item) {
    const std::size_t size = std::min(info.max_batch * item, input.size() - start);
    all.append(infer_batch(std::as_bytes(input.subspan(start, size)), size / item));
  }
  try {
    check_finite(all, info.labels.size());
  } catch (const Error& error) {
    connection.fail("gives an answer that can't be right: " + std::string(error.what()));
  }
  return all;
}

TritonClient::TritonClient(const TritonOptions& options) : impl_(std::make_unique<Impl>(options)) {}
TritonClient::~TritonClient() = default;
TritonClient::TritonClient(TritonClient&&) noexcept = default;
TritonClient& TritonClient::operator=(TritonClient&&) noexcept = default;

const ModelInfo& TritonClient::info() const { return impl_->info; }

Outputs TritonClient::run(std::span<const std::uint8_t> pixels) const {
  return impl_->run(pixels, ElementType::uint8);
}

Outputs TritonClient::run(std::span<const float> images) const {
  return impl_->run(images, ElementType::float32);
}

}  // namespace nin
