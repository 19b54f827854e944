#pragma once

#include <string_view>

#include "bytes.h"
#include "image.h"
#include "nin/decoding.h"

namespace nin {

inline constexpr std::string_view png_magic = "\x89PNG\r\n\x1a\n";

/// Decodes a file that begins with png_magic to what Pillow makes grey or RGB of it, turned
/// upright, in its own size. Throws Error where it isn't whole, or by check_size where that is
/// wrong.
[[nodiscard]] Image decode_png(Bytes file, const Decoding& decoding);

}  // namespace nin
