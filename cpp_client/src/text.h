#pragma once

#include <algorithm>
#include <string>
#include <string_view>

namespace nin {

/// A foreign text for a message of ours: printable ASCII, no line break, not too long.
[[nodiscard]] inline std::string one_line(std::string_view text) {
  constexpr std::size_t most = 200;
  std::string line(text.substr(0, most));
  std::ranges::replace_if(line, [](char c) { return c < ' ' || c > '~'; }, '?');
  return text.size() > most ? line + "..." : line;
}

}  // namespace nin
