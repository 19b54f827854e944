#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace nin {

using Bytes = std::span<const std::uint8_t>;

[[nodiscard]] constexpr bool starts_with(Bytes bytes, std::string_view text) {
  const auto equal = [](std::uint8_t byte, char c) { return byte == static_cast<std::uint8_t>(c); };
  return bytes.size() >= text.size() && std::ranges::equal(bytes.first(text.size()), text, equal);
}

/// The big-endian numbers of IDX, PNG and JPEG. The caller has checked that the bytes are there.
[[nodiscard]] constexpr std::uint32_t read_u16(Bytes bytes, std::size_t at) {
  return static_cast<std::uint32_t>(bytes[at] << 8 | bytes[at + 1]);
}

[[nodiscard]] constexpr std::uint32_t read_u32(Bytes bytes, std::size_t at) {
  return read_u16(bytes, at) << 16 | read_u16(bytes, at + 2);
}

}  // namespace nin
