#include "exif.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace nin {
namespace {

constexpr std::uint32_t orientation_tag = 0x0112;
constexpr std::size_t entry_size = 12;

/// Numbers of either byte order; none where the bytes end before.
class Tiff {
 public:
  explicit Tiff(Bytes bytes) : bytes_(bytes), little_(!bytes.empty() && bytes[0] == 'I') {}

  [[nodiscard]] bool valid() const {
    const auto order = u16(0), version = u16(2);
    // the version's bytes swapped is a known mistake, which Pillow overlooks as well
    return (order == 0x4949U || order == 0x4D4DU) && (version == 42U || version == 42U << 8);
  }

  [[nodiscard]] std::optional<std::uint32_t> u16(std::size_t at) const {
    if (bytes_.size() < 2 || at > bytes_.size() - 2) return std::nullopt;
    const std::uint32_t number = read_u16(bytes_, at);
    return little_ ? (number & 0xFF) << 8 | number >> 8 : number;
  }

  [[nodiscard]] std::optional<std::uint32_t> u32(std::size_t at) const {
    const auto first = u16(at), second = u16(at + 2);
    if (!first || !second) return std::nullopt;
    return little_ ? *second << 16 | *first : *first << 16 | *second;
  }

 private:
  Bytes bytes_;
  bool little_;
};

/// The number of an entry; none unless it is a single short or long.
std::optional<std::uint32_t> read_integer(const Tiff& tiff, std::size_t entry) {
  constexpr std::uint32_t short_type = 3, long_type = 4;
  const auto type = tiff.u16(entry + 2);
  if (tiff.u32(entry + 4) != 1U) return std::nullopt;
  if (type == short_type) return tiff.u16(entry + 8);
  return type == long_type ? tiff.u32(entry + 8) : std::nullopt;
}

}  // namespace

int read_orientation(Bytes exif) {
  const Tiff tiff(exif);
  const auto directory = tiff.u32(4);
  if (!tiff.valid() || !directory) return 1;
  const std::size_t first = std::size_t{*directory} + 2;
  const std::size_t count = tiff.u16(*directory).value_or(0);
  const std::size_t end = std::min(first + count * entry_size, exif.size());
  for (std::size_t entry = first; entry + entry_size <= end; entry += entry_size) {
    if (tiff.u16(entry) != orientation_tag) continue;
    const std::uint32_t orientation = read_integer(tiff, entry).value_or(1);
    return orientation >= 1 && orientation <= 8 ? static_cast<int>(orientation) : 1;
  }
  return 1;
}

Image transpose(Image image, int orientation) {
  if (orientation <= 1) return image;
  const bool swap = orientation >= 5;  // rows become columns
  const bool right_to_left = orientation == 2 || orientation == 3 || orientation >= 7;
  const bool bottom_up =
      orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  Image upright{
      swap ? image.height : image.width, swap ? image.width : image.height, image.channels, {}};
  upright.pixels.reserve(image.pixels.size());
  for (std::size_t y = 0; y < upright.height; ++y) {
    for (std::size_t x = 0; x < upright.width; ++x) {
      const std::size_t column = swap ? y : x, row = swap ? x : y;
      const std::size_t from_x = right_to_left ? image.width - 1 - column : column;
      const std::size_t from_y = bottom_up ? image.height - 1 - row : row;
      const auto from =
          image.pixels.begin() +
          static_cast<std::ptrdiff_t>((from_y * image.width + from_x) * image.channels);
      upright.pixels.insert(upright.pixels.end(), from,
                            from + static_cast<std::ptrdiff_t>(image.channels));
    }
  }
  return upright;
}

}  // namespace nin
