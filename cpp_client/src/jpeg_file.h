#pragma once

#include <string_view>

#include "bytes.h"
#include "image.h"
#include "nin/decoding.h"

namespace nin {

inline constexpr std::string_view jpeg_magic = "\xff\xd8\xff";

struct JpegHeader {
  std::size_t width;
  std::size_t height;
  int colour_space;  ///< TurboJPEG's TJCS
};

/// Throws Error where the header of a file that begins with jpeg_magic isn't whole.
[[nodiscard]] JpegHeader read_jpeg_header(Bytes file);

/// Decodes a file that begins with jpeg_magic to what Pillow makes grey or RGB of it, turned
/// upright, in its own size. Throws Error where it isn't whole, or by check_size.
[[nodiscard]] Image decode_jpeg(Bytes file, const Decoding& decoding);

}  // namespace nin
