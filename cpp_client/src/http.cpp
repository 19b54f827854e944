#include "http.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <new>
#include <sstream>
#include <string_view>
#include <utility>

#include "text.h"

namespace nin {
namespace {

constexpr double longest_timeout_s = 86'400;

using Headers = std::unique_ptr<curl_slist, Release<curl_slist_free_all>>;
using Url = std::unique_ptr<CURLU, Release<curl_url_cleanup>>;
using Text = std::unique_ptr<char, Release<curl_free>>;

/// 1.5, not 1.500000.
std::string to_text(double value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

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

double checked_timeout(double seconds) {
  if (!(seconds > 0 && seconds <= longest_timeout_s)) {  // NaN too
    throw Error("the timeout is " + to_text(seconds) + " s, expected more than 0 and at most " +
                to_text(longest_timeout_s));
  }
  return seconds;
}

/// curl_global_init isn't safe in several threads at once everywhere, a static local is.
void initialise_curl() {
  static const CURLcode code = curl_global_init(CURL_GLOBAL_DEFAULT);
  if (code != CURLE_OK) throw Error(std::string("libcurl: ") + curl_easy_strerror(code));
}

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

}  // namespace

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
  return perform(path, headers.get(), limit);
}

Answer Connection::perform(const std::string& path, const curl_slist* headers, std::size_t limit) {
  Sink sink{{}, limit};
  sink.body.reserve(limit);
  reason_.front() = '\0';
  set(CURLOPT_URL, (address_.base + path).c_str());
  set(CURLOPT_HTTPHEADER, headers);
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

}  // namespace nin
