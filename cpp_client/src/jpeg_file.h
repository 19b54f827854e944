#pragma once

#include <string_view>

#include "bytes.h"
#include "grey_image.h"

namespace nin {

inline constexpr std::string_view jpeg_magic = "\xff\xd8\xff";

struct JpegHeader {
  std::size_t width;
  std::size_t height;
  int colour_space;  ///< TurboJPEG's TJCS
};

/// Throws Error where the header of a file that begins with jpeg_magic isn't whole.
[[nodiscard]] JpegHeader read_jpeg_header(Bytes file);

/// Decodes a file that begins with jpeg_magic to what Pillow makes grey of it, turned upright.
/// Throws Error where it isn't whole, or the image is too large.
[[nodiscard]] GreyImage decode_jpeg(Bytes file);

}  // namespace nin
