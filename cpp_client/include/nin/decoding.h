#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace nin {

/// How an image file becomes the pixels that a model takes; models carry their own.
struct Decoding {
  enum class Mode { grey, rgb };
  enum class Resize {
    stretch,  ///< to the size, whatever the proportions
    crop,     ///< the shorter edge to shorter_side, then the centre, black where that isn't enough
    pad,      ///< to fit into the size, centred on black
  };
  enum class Filter { bicubic, bilinear };

  Mode mode;
  Resize resize;
  std::size_t height;  ///< of the pixels
  std::size_t width;
  std::size_t shorter_side;  ///< for crop; else 0
  Filter filter;             ///< antialiased, as Pillow's

  bool operator==(const Decoding&) const = default;
};

/// Decodes a PNG or JPEG file to one image's pixels, as the server's decoder does: the orientation
/// of plain Exif applied, other metadata ignored; transparent pixels over black; of 16 bits the
/// upper 8; grey by ITU-R 601. Pixels are height * width bytes, or three times as many where the
/// mode is rgb: row by row, R, G and B of a pixel together. They are the same as in Python, bit for
/// bit: of JPEG, where both decode by libjpeg-turbo, as Pillow's wheels do. Throws Error where the
/// bytes aren't a whole image by the server's rule (docs/serving.md), where the decoding makes no
/// sense, or before anything is decoded where the image has more than 50 million pixels, now or
/// resized, an edge above 65,535, or one that vanishes when it is fitted into the size.
[[nodiscard]] std::vector<std::uint8_t> decode_image(std::span<const std::uint8_t> file,
                                                     const Decoding& decoding);

/// Whether bytes begin as a PNG or JPEG file.
[[nodiscard]] bool is_image(std::span<const std::uint8_t> file);

}  // namespace nin
