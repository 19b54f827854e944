#include "nin/triton_client.h"

#include <curl/curl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>
#include <sstream>
#include <string_view>
#include <utility>

#include "json.h"
#include "metadata.h"
#include "outputs.h"
#include "preprocess.h"
#include "text.h"

namespace nin {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the protocol's tensors are");

// A real answer's JSON has some kilobytes. The parser needs many times its text, so that a server
// which isn't what it should be must not choose the size.
constexpr std::size_t json_bytes_at_most = std::size_t{1} << 20;
constexpr double longest_timeout_s = 86'400;

/// The library's messages begin with "[json.exception.parse_error.101] ".
std::string reason_of(const json::exception& error) {
  const std::string_view text(error.what());
  const std::size_t end = text.find("] ");
  return one_line(end == std::string_view::npos ? text : text.substr(end + 2));
}

/// 1.5, not 1.500000.
std::string to_text(double value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

// --- the address ---

template <auto Function>
struct Release {
  template <typename T>
  void operator()(T* owned) const {
    Function(owned);
  }
};
using Handle = std::unique_ptr<CURL, Release<curl_easy_cleanup>>;
using Headers = std::unique_ptr<curl_slist, Release<curl_slist_free_all>>;
using Url = std::unique_ptr<CURLU, Release<curl_url_cleanup>>;
using Text = std::unique_ptr<char, Release<curl_free>>;

struct Address {
  std::string base;   ///< http://127.0.0.1:8000
  std::string shown;  ///< 127.0.0.1:8000
};

/// Empty where the address has no such part.
std::string part_of(const Url& url, CURLUPart part, unsigned flags = 0) {
  char* found = nullptr;
  if (curl_url_get(url.get(), part, &found, flags) != CURLUE_OK) return {};
  return Text(found).get();
}

/// Whether an address that curl can parse is one that is meant: a server's, not a page's.
bool is_server(const Url& url, bool needs_port) {
  const std::string scheme = part_of(url, CURLUPART_SCHEME);
  const std::string port = part_of(url, CURLUPART_PORT);
  return (scheme == "http" || scheme == "https") && port != "0" && !(needs_port && port.empty()) &&
         part_of(url, CURLUPART_QUERY).empty() && part_of(url, CURLUPART_FRAGMENT).empty();
}

Address parse_address(const std::string& text) {
  const Url url(curl_url());
  if (!url) throw std::bad_alloc();
  const bool bare = text.find("://") == std::string::npos;
  const std::string whole = bare ? "http://" + text : text;
  const bool parsed = one_line(text) == text &&
                      curl_url_set(url.get(), CURLUPART_URL, whole.c_str(), 0) == CURLUE_OK;
  if (parsed && whole.find('@') != std::string::npos) {  // it isn't repeated: logs keep it
    throw Error("a server's address can't have a user name or a password");
  }
  if (!parsed || !is_server(url, bare)) {
    throw Error("'" + one_line(text) +
                "' isn't a server's address; write HOST:PORT, as in 127.0.0.1:8000");
  }
  std::string base = part_of(url, CURLUPART_URL);
  while (base.ends_with('/')) base.pop_back();
  return {base,
          part_of(url, CURLUPART_HOST) + ':' + part_of(url, CURLUPART_PORT, CURLU_DEFAULT_PORT)};
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

double checked_timeout(double seconds) {
  if (!(seconds > 0 && seconds <= longest_timeout_s)) {  // NaN too
    throw Error("the timeout is " + to_text(seconds) + " s, expected more than 0 and at most " +
                to_text(longest_timeout_s));
  }
  return seconds;
}

// --- HTTP ---

/// curl_global_init isn't safe in several threads at once everywhere, a static local is.
void initialise_curl() {
  static const CURLcode code = curl_global_init(CURL_GLOBAL_DEFAULT);
  if (code != CURLE_OK) throw Error(std::string("libcurl: ") + curl_easy_strerror(code));
}

struct Answer {
  long status = 0;
  std::string body;
  std::optional<std::string> json_size;  ///< the header that says how much of the body is JSON
};

struct Sink {
  std::string body;
  std::size_t limit;
};

/// Never throws, which C code couldn't bear: the body's memory is reserved before.
std::size_t receive(const char* data, std::size_t size, std::size_t count, void* user) {
  Sink& sink = *static_cast<Sink*>(user);
  if (size * count > sink.limit - sink.body.size()) return 0;
  sink.body.append(data, size * count);
  return size * count;
}

void append(Headers& headers, const std::string& line) {
  curl_slist* longer = curl_slist_append(headers.get(), line.c_str());
  if (longer == nullptr) throw std::bad_alloc();
  (void)headers.release();
  headers.reset(longer);
}

/// One connection, kept alive, to one server.
class Connection {
 public:
  Connection(const std::string& url, double timeout_s);

  Answer get(const std::string& path);

  /// A JSON text and a tensor after it; `limit` is the size of the largest right answer.
  Answer post(const std::string& path, const std::string& text, std::span<const std::byte> tensor,
              std::size_t limit);

  /// Throws Error: what is wrong with the server, after its address.
  [[noreturn]] void fail(const std::string& what) const {
    throw Error("the server at " + address_.shown + ' ' + what);
  }

 private:
  template <typename T>
  void set(CURLoption option, T value) {
    const CURLcode code = curl_easy_setopt(handle_.get(), option, value);
    if (code == CURLE_OUT_OF_MEMORY) throw std::bad_alloc();
    if (code != CURLE_OK) throw Error(std::string("libcurl: ") + curl_easy_strerror(code));
  }
  void set_options();
  Answer perform(const std::string& path, const Headers& headers, std::size_t limit);
  void connect();
  [[noreturn]] void fail_with(CURLcode code, std::size_t limit) const;

  Address address_;
  double timeout_s_;
  std::array<char, CURL_ERROR_SIZE> reason_{};
  Handle handle_;
  pid_t process_ = 0;  ///< whose connection it is
};

Connection::Connection(const std::string& url, double timeout_s)
    : timeout_s_(checked_timeout(timeout_s)) {
  initialise_curl();
  address_ = parse_address(url);
  connect();
}

/// Anew in the child of fork(): on one socket, parent and child would read each other's answers.
void Connection::connect() {
  if (process_ == getpid()) return;
  handle_.reset(curl_easy_init());
  if (!handle_) throw std::bad_alloc();
  set_options();
  process_ = getpid();
}

void Connection::set_options() {
  const long timeout_ms = std::max(1L, std::lround(timeout_s_ * 1000));  // 0 would be forever
  set(CURLOPT_CONNECTTIMEOUT_MS, timeout_ms);
  set(CURLOPT_TIMEOUT_MS, timeout_ms);
  set(CURLOPT_NOSIGNAL, 1L);  // no SIGALRM for the timeout: the process may have other threads
  set(CURLOPT_PROTOCOLS_STR, "http,https");
  set(CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
  // Images go to the server that was named, not to a proxy which the environment happens to name;
  // one on the way to 127.0.0.1 would only fail.
  set(CURLOPT_NOPROXY, "*");
  set(CURLOPT_FOLLOWLOCATION, 0L);  // nor to another one that it names
  set(CURLOPT_TCP_NODELAY, 1L);     // a request's last, short packet goes at once
  set(CURLOPT_WRITEFUNCTION, &receive);
  set(CURLOPT_ERRORBUFFER, reason_.data());
}

Answer Connection::get(const std::string& path) {
  connect();
  set(CURLOPT_HTTPGET, 1L);
  return perform(path, nullptr, json_bytes_at_most);
}

Answer Connection::post(const std::string& path, const std::string& text,
                        std::span<const std::byte> tensor, std::size_t limit) {
  connect();
  std::string body;
  body.reserve(text.size() + tensor.size());
  body += text;
  body.append(reinterpret_cast<const char*>(tensor.data()), tensor.size());
  Headers headers;
  append(headers, "Content-Type: application/octet-stream");
  append(headers, "Inference-Header-Content-Length: " + std::to_string(text.size()));
  append(headers, "Expect:");  // else curl waits for a "100 Continue" before a large body
  set(CURLOPT_POST, 1L);
  set(CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(body.size()));
  set(CURLOPT_POSTFIELDS, body.data());
  return perform(path, headers, limit);
}

Answer Connection::perform(const std::string& path, const Headers& headers, std::size_t limit) {
  Sink sink{{}, limit};
  sink.body.reserve(limit);
  reason_.front() = '\0';
  set(CURLOPT_URL, (address_.base + path).c_str());
  set(CURLOPT_HTTPHEADER, headers.get());
  set(CURLOPT_WRITEDATA, &sink);
  const CURLcode code = curl_easy_perform(handle_.get());
  if (code != CURLE_OK) fail_with(code, limit);
  Answer answer;
  curl_easy_getinfo(handle_.get(), CURLINFO_RESPONSE_CODE, &answer.status);
  curl_header* header = nullptr;
  if (curl_easy_header(handle_.get(), "Inference-Header-Content-Length", 0, CURLH_HEADER, -1,
                       &header) == CURLHE_OK) {
    answer.json_size = header->value;
  }
  answer.body = std::move(sink.body);
  return answer;
}

void Connection::fail_with(CURLcode code, std::size_t limit) const {
  const std::string_view details(reason_.data());
  const std::string why = one_line(details.empty() ? curl_easy_strerror(code) : details);
  switch (code) {
    case CURLE_OUT_OF_MEMORY:
      throw std::bad_alloc();
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_CONNECT:
      fail("can't be reached: " + why + "; start one with `make serve`");
    case CURLE_OPERATION_TIMEDOUT:
      fail("gave no whole answer within " + to_text(timeout_s_) +
           " s; allow more time if it's busy");
    case CURLE_WRITE_ERROR:
      fail("sends more than " + std::to_string(limit) + " bytes; is it a Triton server?");
    case CURLE_GOT_NOTHING:
    case CURLE_PARTIAL_FILE:
    case CURLE_RECV_ERROR:
    case CURLE_SEND_ERROR:
      fail("closed the connection before its answer was whole: " + why);
    default:
      fail("can't be talked to: " + why + "; is it a Triton server's HTTP port?");
  }
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

std::string describe_input(const Graph& graph) {
  return graph.input + (graph.pixels ? " UINT8 [-1,28,28]" : " FP32 [-1,1,224,224]");
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

std::vector<float> to_floats(std::string_view bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

}  // namespace

struct TritonClient::Impl {
  explicit Impl(const TritonOptions& options);

  // Asking for what the model is.
  json ask(const std::string& path);
  void check_contract(const json& metadata);
  void read_batch_size();
  void read_labels();

  // Classifying: `input` is a batch of `count` images, in the form that the graph takes.
  [[nodiscard]] json make_request(std::size_t count, std::size_t bytes, const json& outputs) const;
  Answer infer(const json& request, std::span<const std::byte> input, std::size_t output_bytes);
  Outputs infer_batch(std::span<const std::byte> input, std::size_t count);
  [[nodiscard]] std::pair<json, std::string_view> split(const Answer& answer) const;
  [[nodiscard]] Outputs read_outputs(const Answer& answer, std::size_t count) const;

  template <typename T, typename Run>
  Outputs run_batches(std::span<const T> input, std::size_t item, Run run_batch) const;

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
  std::string model;
  std::string path;
  Graph graph;
  std::vector<std::string> labels;
  std::size_t batch_size = 0;
};

TritonClient::Impl::Impl(const TritonOptions& options)
    : connection(options.url, options.timeout_s),
      model(checked_model(options.model)),
      path("/v2/models/" + model) {
  check_contract(ask(path));
  read_batch_size();
  read_labels();
}

json TritonClient::Impl::ask(const std::string& where) {
  const Answer answer = connection.get(where);
  const std::string status = std::to_string(answer.status);
  if (answer.status == 400 || answer.status == 404) {
    connection.fail("has no model " + model + ": " + reason_of(answer.body));
  }
  if (answer.status != 200) {
    connection.fail("answers with HTTP " + status + ": " + reason_of(answer.body));
  }
  return readable([&] { return parse_json(answer.body); });
}

/// Finds the graph by its input, and the number of classes by its outputs.
void TritonClient::Impl::check_contract(const json& metadata) {
  const auto [inputs, outputs] = readable([&] {
    return std::pair(describe_all(metadata.at("inputs")), describe_all(metadata.at("outputs")));
  });
  const Graph& pixels = *find_graph("fashion_mnist");
  const Graph& images = *find_graph("nin");
  if (inputs != describe_input(pixels) && inputs != describe_input(images)) {
    connection.fail("can't be used: model " + model + " takes " + one_line(inputs) + ", expected " +
                    describe_input(pixels) + " or " + describe_input(images));
  }
  graph = inputs == describe_input(pixels) ? pixels : images;
  const std::size_t classes = readable([&] {
    return to_size(named(metadata.at("outputs"), graph.outputs.front()).at("shape").at(1));
  });
  for (const std::string& name : graph.outputs) {
    const std::string expected = name + " FP32 [-1," + std::to_string(classes) + "]";
    const std::string found =
        readable([&] { return describe(named(metadata.at("outputs"), name)); });
    if (found != expected || classes < 1 || classes > classes_at_most) {
      connection.fail("can't be used: model " + model + " gives " + one_line(outputs) +
                      ", expected " + name + " FP32 [-1,CLASSES]");
    }
  }
  labels.resize(classes);
}

void TritonClient::Impl::read_batch_size() {
  const json config = ask(path + "/config");
  const std::size_t found = readable([&] { return to_size(config.at("max_batch_size")); });
  if (found == 0) {
    connection.fail("can't be used: model " + model +
                    " takes no batches; its config.pbtxt needs a max_batch_size of 1 or more");
  }
  batch_size = std::min(found, max_batch);  // what is promised, whatever the server would take
}

/// By the classification extension, on a black image: all classes of the last output.
void TritonClient::Impl::read_labels() {
  const std::string& name = graph.outputs.back();
  const std::vector<std::byte> black(graph.pixels ? image_pixels : network_pixels * sizeof(float));
  const json wanted = {{"name", name}, {"parameters", {{"classification", labels.size()}}}};
  const json request = make_request(1, black.size(), json::array({wanted}));
  const Answer answer = infer(request, black, 0);
  readable([&] {
    const json parsed = parse_json(answer.body);
    const auto texts = named(parsed.at("outputs"), name).at("data").get<std::vector<std::string>>();
    for (const std::string& text : texts) put_label(labels, text);
  });
  if (std::find(labels.begin(), labels.end(), "") != labels.end()) {
    connection.fail("can't be used: it gives no labels for some of the " +
                    std::to_string(labels.size()) + " classes of model " + model +
                    "; its config.pbtxt needs a label_filename for " + name);
  }
}

json TritonClient::Impl::make_request(std::size_t count, std::size_t bytes,
                                      const json& outputs) const {
  const json shape = graph.pixels ? json{count, image_side, image_side}
                                  : json{count, 1, network_side, network_side};
  json input = {{"name", graph.input},
                {"datatype", graph.pixels ? "UINT8" : "FP32"},
                {"shape", shape},
                {"parameters", {{"binary_data_size", bytes}}}};
  return {{"inputs", json::array({std::move(input)})}, {"outputs", outputs}};
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
  json outputs = json::array();
  for (const std::string& name : graph.outputs) {
    outputs.push_back({{"name", name}, {"parameters", {{"binary_data", true}}}});
  }
  const std::size_t output_bytes = graph.outputs.size() * count * labels.size() * sizeof(float);
  const Answer answer = infer(make_request(count, input.size(), outputs), input, output_bytes);
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
        name + " FP32 [" + std::to_string(count) + ',' + std::to_string(labels.size()) + ']';
    const std::size_t size = to_size(output.at("parameters").at("binary_data_size"));
    if (describe(output) != expected || size != count * labels.size() * sizeof(float)) {
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
  for (const std::string& name : graph.outputs) {
    if (!found.contains(name)) throw Error("there is no output " + name);
  }
  Outputs outputs{std::move(found["logits"]), {}};
  outputs.probabilities =
      graph.pixels ? std::move(found["probabilities"]) : softmax(outputs.logits, labels.size());
  return outputs;
}

template <typename T, typename Run>
Outputs TritonClient::Impl::run_batches(std::span<const T> input, std::size_t item,
                                        Run run_batch) const {
  if (input.size() % item != 0) {
    throw Error("the input has " + std::to_string(input.size()) +
                " values, expected a multiple of " + std::to_string(item));
  }
  Outputs all;
  for (std::size_t start = 0; start < input.size(); start += batch_size * item) {
    const std::size_t size = std::min(batch_size * item, input.size() - start);
    all.append(run_batch(input.subspan(start, size), size / item));
  }
  try {
    check_finite(all, labels.size());
  } catch (const Error& error) {
    connection.fail("gives an answer that can't be right: " + std::string(error.what()));
  }
  return all;
}

TritonClient::TritonClient(const TritonOptions& options) : impl_(std::make_unique<Impl>(options)) {}
TritonClient::~TritonClient() = default;
TritonClient::TritonClient(TritonClient&&) noexcept = default;
TritonClient& TritonClient::operator=(TritonClient&&) noexcept = default;

std::vector<Prediction> TritonClient::classify(std::span<const std::uint8_t> pixels) const {
  std::vector<Prediction> best;
  for (auto& predictions : top(pixels, 1)) best.push_back(std::move(predictions.front()));
  return best;
}

std::vector<std::vector<Prediction>> TritonClient::top(std::span<const std::uint8_t> pixels,
                                                       std::size_t k) const {
  return top_predictions(run(pixels).probabilities, labels(), k);
}

std::vector<float> TritonClient::logits(std::span<const std::uint8_t> pixels) const {
  return run(pixels).logits;
}

std::vector<float> TritonClient::logits(std::span<const float> images) const {
  return run(images).logits;
}

Outputs TritonClient::run(std::span<const std::uint8_t> pixels) const {
  using Pixels = std::span<const std::uint8_t>;
  return impl_->run_batches(pixels, image_pixels, [this](Pixels batch, std::size_t count) {
    if (impl_->graph.pixels) return impl_->infer_batch(std::as_bytes(batch), count);
    const std::vector<float> images = preprocess(batch);
    return impl_->infer_batch(std::as_bytes(std::span(images)), count);
  });
}

Outputs TritonClient::run(std::span<const float> images) const {
  if (impl_->graph.pixels) {
    throw Error("model " + impl_->model + " takes " + describe_input(impl_->graph) +
                "; float images need a model of the graph nin, as nin_onnx");
  }
  using Images = std::span<const float>;
  return impl_->run_batches(images, network_pixels, [this](Images batch, std::size_t count) {
    return impl_->infer_batch(std::as_bytes(batch), count);
  });
}

const std::string& TritonClient::graph() const { return impl_->graph.name; }

const std::vector<std::string>& TritonClient::labels() const { return impl_->labels; }

}  // namespace nin
