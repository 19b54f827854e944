#include "nin/files.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "bytes.h"
#include "exif.h"
#include "grey_image.h"
#include "jpeg.h"
#include "nin/error.h"
#include "png.h"
#include "resize.h"

namespace nin {
namespace {

bool starts_with(Bytes file, std::string_view magic) {
  const auto equal = [](std::uint8_t byte, char c) { return byte == static_cast<std::uint8_t>(c); };
  return file.size() >= magic.size() && std::ranges::equal(file.first(magic.size()), magic, equal);
}

std::string hexadecimal(Bytes bytes) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string text;
  for (const std::uint8_t byte : bytes) {
    text += {' ', digits[byte >> 4], digits[byte & 15]};
  }
  return text;
}

GreyImage decode(Bytes file) {
  if (starts_with(file, png_magic)) {
    const PngFile png = parse_png(file);
    return transpose(decode_png(png), read_orientation(png.exif));
  }
  if (starts_with(file, jpeg_magic)) {
    const JpegFile jpeg = parse_jpeg(file);
    return transpose(decode_jpeg(jpeg), read_orientation(jpeg.exif));
  }
  if (file.empty()) throw Error("0 bytes, expected a PNG or JPEG file");
  throw Error("not a PNG or JPEG file: it starts with" +
              hexadecimal(file.first(std::min(file.size(), png_magic.size()))));
}

}  // namespace

std::vector<std::uint8_t> decode_image(std::span<const std::uint8_t> file) {
  return fit(decode(file));
}

}  // namespace nin
