#pragma once

#include <string_view>

#include "bytes.h"
#include "grey_image.h"

namespace nin {

inline constexpr std::string_view png_magic = "\x89PNG\r\n\x1a\n";

/// Decodes a file that begins with png_magic to what Pillow makes grey of it, turned upright.
/// Throws Error where it isn't whole, or the image is too large.
[[nodiscard]] GreyImage decode_png(Bytes file);

}  // namespace nin
