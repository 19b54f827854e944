#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace nin {

/// Pixels of one image, row by row: 28x28, one byte each, black is 0.
inline constexpr std::size_t image_side = 28;
inline constexpr std::size_t image_pixels = image_side * image_side;

/// The images that the graph `nin` takes: 224x224 floats in [0, 1].
inline constexpr std::size_t network_side = 224;
inline constexpr std::size_t network_pixels = network_side * network_side;

/// Decodes a PNG or JPEG file to one image's pixels, as the server's model decode_image does:
/// the orientation of plain Exif applied, other metadata ignored; transparent pixels over black;
/// grey by ITU-R 601, of 16 bits the upper 8; the longer edge to 28 pixels (antialiased, bicubic),
/// centred on black. An image of 28x28 grey pixels stays as it is. The pixels are the same as in
/// Python, bit for bit: of JPEG, where both decode by libjpeg-turbo, as Pillow's wheels do. Throws
/// Error where the bytes aren't a whole image, or before anything is decoded where it has more than
/// 50 million pixels, an edge above 65,535, or one 56 times as long as the other.
[[nodiscard]] std::vector<std::uint8_t> decode_image(std::span<const std::uint8_t> file);

/// Whether bytes begin as a PNG or JPEG file.
[[nodiscard]] bool is_image(std::span<const std::uint8_t> file);

/// Whether bytes are an IDX file, or gzip, in which no image comes here.
[[nodiscard]] bool is_idx(std::span<const std::uint8_t> file);

/// Gives the next part of a file's bytes, which need to last until the next call; none at its end.
/// The first part of a file has two bytes or more: they tell whether it is gzipped.
using NextPart = std::function<std::span<const std::uint8_t>()>;

/// What an IDX file of images holds, plain or gzipped: pixels, or images for the graph `nin`.
struct IdxImages {
  std::vector<std::uint8_t> pixels;  ///< (N, 28, 28), of unsigned bytes
  std::vector<float> images;         ///< (N, 1, 224, 224), of floats; one of the two is empty
};

/// Reads (N, 28, 28) unsigned bytes or (N, 1, 224, 224) floats.
/// Throws Error where the file isn't one, its size isn't what its header promises, or that is more
/// than 2 GiB. Of a file in parts, no more is asked for than is needed to see that.
[[nodiscard]] IdxImages decode_idx_images(std::span<const std::uint8_t> file);
[[nodiscard]] IdxImages decode_idx_images(const NextPart& next);

/// Reads (N) labels, unsigned bytes. Throws Error as decode_idx_images does.
[[nodiscard]] std::vector<std::uint8_t> decode_idx_labels(std::span<const std::uint8_t> file);
[[nodiscard]] std::vector<std::uint8_t> decode_idx_labels(const NextPart& next);

}  // namespace nin
