#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "bytes.h"
#include "grey_image.h"

namespace nin {

inline constexpr std::string_view png_magic = "\x89PNG\r\n\x1a\n";

/// A PNG file's chunks that matter here; the spans look into the file.
struct PngFile {
  std::size_t width;
  std::size_t height;
  unsigned depth;   ///< bits of a sample
  unsigned colour;  ///< 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGB with alpha
  bool interlaced;
  std::optional<Bytes> palette;
  std::optional<Bytes> transparency;
  Bytes exif;
  std::vector<Bytes> data;  ///< the compressed rows
};

/// Splits a file that begins with png_magic. Throws Error where a chunk is damaged or missing, or
/// the image is too large; nothing is decompressed yet.
[[nodiscard]] PngFile parse_png(Bytes file);

/// Decodes it to what Pillow makes grey of it. Throws Error where the rows are damaged.
[[nodiscard]] GreyImage decode_png(const PngFile& png);

}  // namespace nin
