#pragma once

#include <curl/curl.h>
#include <sys/types.h>

#include <array>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "nin/error.h"

namespace nin {

/// A real answer's JSON has some kilobytes, but for the labels of many classes. The parser needs
/// many times its text, so that a server which isn't what it should be must not choose the size.
inline constexpr std::size_t json_bytes_at_most = std::size_t{1} << 20;

template <auto Function>
struct Release {
  template <typename T>
  void operator()(T* owned) const {
    Function(owned);
  }
};

/// A server's address.
struct Address {
  std::string base;   ///< http://127.0.0.1:8000
  std::string shown;  ///< 127.0.0.1:8000
};

struct Answer {
  long status = 0;
  std::string body;
  std::optional<std::string> json_size;  ///< the header that says how much of the body is JSON
};

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
  Answer perform(const std::string& path, const curl_slist* headers, std::size_t limit);
  void connect();
  [[noreturn]] void fail_with(CURLcode code, std::size_t limit) const;

  Address address_;
  double timeout_s_;
  std::array<char, CURL_ERROR_SIZE> reason_{};
  std::unique_ptr<CURL, Release<curl_easy_cleanup>> handle_;
  pid_t process_ = 0;  ///< whose connection it is
};

}  // namespace nin
