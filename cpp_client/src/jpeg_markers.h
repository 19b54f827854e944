#pragma once

#include <cstdint>
#include <vector>

#include "bytes.h"

namespace nin {

/// Walks through a JPEG file from marker to marker until the end of the image, and returns the
/// EXIF metadata on the way. Throws Error where the file ends before, or a scan needs a table that
/// isn't there or is impossible: stb 2.27 takes them from memory that it never wrote.
[[nodiscard]] std::vector<std::uint8_t> walk_jpeg(Bytes file);

}  // namespace nin
