#include "metadata.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "image.h"
#include "nin/error.h"
#include "text.h"

namespace nin {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "golden outputs are");

constexpr std::size_t golden_at_most = 32;
constexpr std::size_t item_at_most = 3 * max_pixels;

/// A whole number from `least` to `most`; the library's own conversion would take -1, 0.5 and true.
std::size_t to_number(const json& value, std::size_t least, std::size_t most, const char* what) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<std::size_t>();
    if (number >= least && number <= most) return number;
  }
  throw Error(std::string("its ") + what + " is " + one_line(value.dump()) + ", expected " +
              std::to_string(least) + " to " + std::to_string(most));
}

/// What a text stands for, among a few.
template <typename T>
T to_choice(const json& value, const char* what,
            std::initializer_list<std::pair<std::string_view, T>> choices) {
  std::string known;
  for (const auto& [text, choice] : choices) {
    if (value == text) return choice;
    known += (known.empty() ? "" : ", ") + std::string(text);
  }
  throw Error(std::string("its ") + what + " is " + one_line(value.dump()) + ", known are " +
              known);
}

// --- the contract ---

Input parse_input(const json& tensor) {
  Input input{
      tensor.at("name").get<std::string>(),
      to_choice<ElementType>(tensor.at("dtype"), "input's dtype",
                             {{"uint8", ElementType::uint8}, {"float32", ElementType::float32}}),
      {}};
  const json& shape = tensor.at("shape");
  if (input.name.empty() || !shape.is_array() || shape.empty() || shape.size() > 8 ||
      shape.front() != "batch") {
    throw Error("its input is " + one_line(tensor.dump()) +
                R"(, expected a name and a shape as ["batch", 32, 32])");
  }
  for (auto size = shape.begin() + 1; size != shape.end(); ++size) {
    input.shape.push_back(to_number(*size, 1, max_edge, "input's size"));
  }
  if (!is_usable(input)) {
    throw Error("it takes " + to_text(input) +
                ", expected uint8 (N, H, W) or (N, H, W, 3), or float32 (N, C, H, W), of at most " +
                std::to_string(item_at_most) + " numbers each");
  }
  return input;
}

void check_outputs(const json& outputs, const Input& input, std::size_t classes) {
  json expected = json::array();
  for (const std::string& name : output_names(input)) {
    expected.push_back({{"name", name}, {"dtype", "float32"}, {"shape", {"batch", classes}}});
  }
  if (outputs != expected) {
    throw Error("its outputs are " + one_line(outputs.dump()) + ", expected " +
                one_line(expected.dump()));
  }
}

std::vector<float> parse_channels(const json& numbers, std::size_t channels, const char* what) {
  const auto values = numbers.get<std::vector<float>>();
  const bool finite = std::ranges::all_of(values, [](float v) { return std::isfinite(v); });
  if (values.size() != channels || !finite) {
    throw Error(std::string("its ") + what + " is " + one_line(numbers.dump()) + ", expected " +
                std::to_string(channels) + " finite numbers");
  }
  return values;
}

Normalisation parse_normalisation(const json& image, const Input& input) {
  const std::size_t channels = input.shape.front();
  Normalisation found{parse_channels(image.at("mean"), channels, "mean"),
                      parse_channels(image.at("std"), channels, "std")};
  if (std::ranges::any_of(found.std, [](float value) { return value <= 0; })) {
    throw Error("its std is " + one_line(image.at("std").dump()) + ", expected numbers above 0");
  }
  return found;
}

void parse_contract(const json& contract, Metadata& metadata) {
  ModelInfo& info = metadata.info;
  info.graph = contract.at("graph").get<std::string>();
  info.input = parse_input(contract.at("input"));
  info.max_batch = to_number(contract.at("max_batch"), 1, batch_at_most, "max_batch");
  const auto kind = to_choice<ElementType>(
      contract.at("kind"), "kind",
      {{"classifier", ElementType::uint8}, {"network", ElementType::float32}});
  if (kind != info.input.type) {
    throw Error("it is a " + contract.at("kind").get<std::string>() + " that takes " +
                to_text(info.input) + "; a classifier takes uint8, a network float32");
  }
  check_outputs(contract.at("outputs"), info.input, info.labels.size());
  metadata.outputs = output_names(info.input);
  if (kind == ElementType::uint8) {
    info.decoding = parse_decoding(contract.at("files"), info.input);
  } else {
    metadata.normalisation = parse_normalisation(contract.at("image"), info.input);
  }
}

std::vector<std::string> parse_labels(const json& data) {
  auto labels = data.get<std::vector<std::string>>();
  if (labels.size() < 2 || labels.size() > classes_at_most) {
    throw Error("it has " + std::to_string(labels.size()) + " labels, expected 2 to " +
                std::to_string(classes_at_most));
  }
  const auto empty = std::ranges::find(labels, "");
  if (empty != labels.end()) {
    throw Error("its label " + std::to_string(empty - labels.begin()) + " is empty");
  }
  return labels;
}

// --- golden vectors ---

/// The value of each character of base64; 255 of others.
constexpr std::array<std::uint8_t, 256> base64_values = [] {
  constexpr std::string_view alphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::array<std::uint8_t, 256> values{};
  values.fill(255);
  for (std::size_t i = 0; i < alphabet.size(); ++i) {
    values[static_cast<std::uint8_t>(alphabet[i])] = static_cast<std::uint8_t>(i);
  }
  return values;
}();

/// Padded base64 of exactly `size` bytes.
std::vector<std::uint8_t> decode_base64(std::string_view text, std::size_t size,
                                        const std::string& what) {
  if (text.size() != (size + 2) / 3 * 4) {
    throw Error("its golden " + what + " have " + std::to_string(text.size()) +
                " characters of base64, expected " + std::to_string((size + 2) / 3 * 4) + " for " +
                std::to_string(size) + " bytes");
  }
  std::vector<std::uint8_t> bytes;
  bytes.reserve(size);
  std::uint32_t bits = 0;
  int count = 0;
  for (const char c : text.substr(0, (size * 4 + 2) / 3)) {
    const std::uint8_t value = base64_values[static_cast<std::uint8_t>(c)];
    if (value == 255) throw Error("its golden " + what + " are no base64");
    bits = bits << 6 | value;
    count += 6;
    if (count >= 8) {
      count -= 8;
      bytes.push_back(static_cast<std::uint8_t>(bits >> count));
    }
  }
  return bytes;
}

std::vector<double> parse_values(const json& text, std::size_t count, const std::string& name) {
  const auto bytes =
      decode_base64(text.get_ref<const std::string&>(), count * sizeof(double), name);
  std::vector<double> values;
  values.reserve(count);
  for (std::size_t at = 0; at < bytes.size(); at += sizeof(double)) {
    std::array<std::uint8_t, sizeof(double)> one{};
    std::ranges::copy(std::span(bytes).subspan(at, one.size()), one.begin());
    values.push_back(std::bit_cast<double>(one));
    if (!std::isfinite(values.back())) throw Error("its golden " + name + " aren't finite numbers");
  }
  return values;
}

/// N of a shape (N, ...) that must be that of the model's input.
std::size_t parse_count(const json& shape, const Input& input) {
  if (!shape.is_array() || shape.empty()) {
    throw Error("the shape of its golden inputs is " + one_line(shape.dump()));
  }
  const std::size_t count = to_number(shape.front(), 1, golden_at_most, "number of golden inputs");
  json expected = json::array({count});
  for (const std::size_t size : input.shape) expected.push_back(size);
  if (shape != expected) {
    throw Error("the shape of its golden inputs is " + one_line(shape.dump()) + ", expected " +
                expected.dump());
  }
  return count;
}

Golden parse_golden(const json& data, const Metadata& metadata) {
  const Input& input = metadata.info.input;
  Golden golden{parse_count(data.at("shape"), input), {}, {}, {}};
  golden.inputs = decode_base64(data.at("inputs").get_ref<const std::string&>(),
                                golden.count * input.item_size(), "inputs");
  for (const std::string& name : metadata.outputs) {
    const auto budget = data.at("budget").at(name).get<double>();
    if (!std::isfinite(budget) || budget < 0) {
      throw Error("its budget for " + name + " is " + one_line(data.at("budget").at(name).dump()) +
                  ", expected a number from 0 on");
    }
    golden.budget[name] = budget;
    golden.outputs[name] =
        parse_values(data.at("outputs").at(name), golden.count * metadata.info.labels.size(), name);
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

std::vector<std::string> output_names(const Input& input) {
  if (input.type == ElementType::float32) return {"logits"};
  return {"logits", "probabilities"};
}

std::string to_text(const Input& input) {
  std::string text =
      one_line(input.name) + (input.type == ElementType::uint8 ? " uint8 (N" : " float32 (N");
  for (const std::size_t size : input.shape) text += ", " + std::to_string(size);
  return text + ")";
}

bool is_usable(const Input& input) {
  const std::size_t rank = input.shape.size();
  const bool pixels = input.type == ElementType::uint8;
  if (pixels ? rank != 2 && !(rank == 3 && input.shape.back() == 3) : rank != 3) return false;
  std::size_t all = 1;
  for (const std::size_t size : input.shape) {
    if (size < 1 || size > max_edge || size > item_at_most / all) return false;
    all *= size;
  }
  return true;
}

Decoding parse_decoding(const json& files, const Input& input) {
  using Mode = Decoding::Mode;
  using Resize = Decoding::Resize;
  using Filter = Decoding::Filter;
  const Decoding decoding{
      to_choice<Mode>(files.at("mode"), "mode", {{"grey", Mode::grey}, {"rgb", Mode::rgb}}),
      to_choice<Resize>(
          files.at("resize"), "resize",
          {{"stretch", Resize::stretch}, {"crop", Resize::crop}, {"pad", Resize::pad}}),
      to_number(files.at("height"), 1, max_edge, "height"),
      to_number(files.at("width"), 1, max_edge, "width"),
      to_number(files.at("shorter_side"), 0, max_edge, "shorter_side"),
      to_choice<Filter>(files.at("filter"), "filter",
                        {{"bicubic", Filter::bicubic}, {"bilinear", Filter::bilinear}})};
  check(decoding);
  std::vector<std::size_t> shape{decoding.height, decoding.width};
  if (decoding.mode == Mode::rgb) shape.push_back(3);
  if (shape != input.shape) {
    throw Error("it takes " + to_text(input) + ", but decodes files to " +
                to_text({input.name, ElementType::uint8, shape}));
  }
  return decoding;
}

std::vector<float> normalise(const Metadata& metadata) {
  const std::vector<std::size_t>& shape = metadata.info.input.shape;
  const std::size_t channels = shape.at(0), plane = shape.at(1) * shape.at(2);
  std::vector<float> images;
  images.reserve(metadata.golden.inputs.size());
  for (const std::uint8_t byte : metadata.golden.inputs) {
    const std::size_t channel = images.size() / plane % channels;
    const float scaled = static_cast<float>(byte) / 255.0F;
    images.push_back((scaled - metadata.normalisation.mean[channel]) /
                     metadata.normalisation.std[channel]);
  }
  return images;
}

Metadata parse_metadata(const std::map<std::string, std::string>& texts) {
  try {
    Metadata metadata{};
    metadata.info.labels = parse_labels(parse_json(text_of(texts, "labels")));
    parse_contract(parse_json(text_of(texts, "contract")), metadata);
    metadata.golden = parse_golden(parse_json(text_of(texts, "golden")), metadata);
    metadata.weights_sha256 = text_of(texts, "weights_sha256");
    return metadata;
  } catch (const json::exception& error) {
    throw Error("its metadata can't be read: " + one_line(error.what()));
  }
}

}  // namespace nin
