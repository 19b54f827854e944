#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "nin/error.h"

namespace nin {

/// Parses a text from elsewhere. Throws json::exception where it isn't JSON, and Error where it is
/// nested so deeply that to write or compare it would exhaust the stack.
[[nodiscard]] inline nlohmann::json parse_json(std::string_view text) {
  constexpr int deepest = 32;
  const auto limit = [](int depth, nlohmann::json::parse_event_t /*event*/,
                        nlohmann::json& /*parsed*/) {
    if (depth > deepest) throw Error("its JSON is nested too deeply");
    return true;
  };
  return nlohmann::json::parse(text, limit);
}

}  // namespace nin
