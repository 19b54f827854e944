#pragma once

#include <string_view>
#include <vector>

#include "bytes.h"
#include "grey_image.h"

namespace nin {

inline constexpr std::string_view jpeg_magic = "\xff\xd8\xff";

/// What is known of a JPEG file before it is decoded.
struct JpegFile {
  std::size_t width;
  std::size_t height;
  Bytes file;
  std::vector<std::uint8_t> exif;
};

/// Checks a file that begins with jpeg_magic. Throws Error where it isn't whole, or the image is
/// too large; nothing is decompressed yet.
[[nodiscard]] JpegFile parse_jpeg(Bytes file);

/// Decodes it by stb_image, to grey. Throws Error where the data are damaged.
[[nodiscard]] GreyImage decode_jpeg(const JpegFile& jpeg);

}  // namespace nin
