// What TritonClient says without a server; tests/test_cpp_triton.py has what needs one.

#include "nin/triton_client.h"

#include <gtest/gtest.h>

#include <chrono>
#include <limits>
#include <string>
#include <type_traits>

namespace {

/// The message of the Error that these options end in.
std::string error_of(const nin::TritonOptions& options) {
  try {
    const nin::TritonClient client(options);
  } catch (const nin::Error& error) {
    return error.what();
  }
  return "no error";
}

std::string error_of_url(const std::string& url) { return error_of({.url = url}); }

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(TritonClient, MovesAndDoesNotCopy) {
  EXPECT_FALSE(std::is_copy_constructible_v<nin::TritonClient>);
  EXPECT_FALSE(std::is_copy_assignable_v<nin::TritonClient>);
  EXPECT_TRUE(std::is_nothrow_move_constructible_v<nin::TritonClient>);
  EXPECT_TRUE(std::is_nothrow_move_assignable_v<nin::TritonClient>);
}

TEST(TritonClient, RefusesWhatIsNoAddress) {
  for (const std::string url :
       {"", "here", "127.0.0.1", "127.0.0.1:", ":1", "127.0.0.1:0", "127.0.0.1:99999",
        "127.0.0.1:8000 ", "my host:8000", "ftp://127.0.0.1:1", "file:///etc/passwd", "http://",
        "https://:1", "127.0.0.1:1?x=1", "127.0.0.1:1#x", "127.0.0.1:1\n", "127.0.0.1:8o00",
        "h\xc3\xa9te:1"}) {
    const std::string message = error_of_url(url);
    EXPECT_TRUE(contains(message, "isn't a server's address; write HOST:PORT")) << message;
    EXPECT_FALSE(contains(message, "\n")) << message;
  }
  const std::string with_nul("127.0.0.1:1\0.example.org", 24);
  EXPECT_TRUE(contains(error_of_url(with_nul), "isn't a server's address"));
}

TEST(TritonClient, NeverRepeatsAPassword) {
  const std::string message = error_of_url("http://user:secret@127.0.0.1:1");
  EXPECT_TRUE(contains(message, "can't have a user name or a password")) << message;
  EXPECT_FALSE(contains(message, "secret")) << message;
}

TEST(TritonClient, SaysThatNobodyIsThere) {
  for (const std::string url : {"127.0.0.1:1", "http://127.0.0.1:1", "http://127.0.0.1:1/",
                                "https://127.0.0.1:1", "HTTP://127.0.0.1:1/behind/a/proxy/"}) {
    const std::string message = error_of_url(url);
    EXPECT_TRUE(contains(message, "the server at 127.0.0.1:1 can't be reached: ")) << message;
    EXPECT_TRUE(contains(message, "; start one with `make serve`")) << message;
  }
  const std::string message = error_of_url("[::1]:1");
  EXPECT_TRUE(contains(message, "the server at [::1]:1 can't be reached: ")) << message;
}

TEST(TritonClient, RefusesWhatIsNoModelsName) {
  for (const std::string name :
       {".", "..", "a/b", "../config", "a b", "a?b", "a#b", "a%20b", "a\nb", "\xc3\xa9"}) {
    const std::string message = error_of({.url = "127.0.0.1:1", .model = name});
    EXPECT_TRUE(contains(message, "isn't a model's name; write letters")) << message;
    EXPECT_FALSE(contains(message, "\n")) << message;
  }
}

TEST(TritonClient, RefusesATimeoutThatIsNone) {
  for (const double timeout_s : {0.0, -1.0, 1e9, std::numeric_limits<double>::infinity(),
                                 std::numeric_limits<double>::quiet_NaN()}) {
    const std::string message = error_of({.url = "127.0.0.1:1", .timeout_s = timeout_s});
    EXPECT_TRUE(contains(message, "the timeout is ")) << message;
  }
}

TEST(TritonClient, TakesATimeoutBelowAMillisecond) {
  const std::string message = error_of({.url = "127.0.0.1:1", .timeout_s = 1e-6});
  EXPECT_TRUE(contains(message, "the server at 127.0.0.1:1 ")) << message;
}

}  // namespace
