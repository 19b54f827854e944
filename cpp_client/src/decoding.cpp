#include "nin/decoding.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "bytes.h"
#include "image.h"
#include "jpeg_file.h"
#include "nin/error.h"
#include "png_file.h"
#include "resize.h"

namespace nin {
namespace {

std::string hexadecimal(Bytes bytes) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string text;
  for (const std::uint8_t byte : bytes) {
    text += {' ', digits[byte >> 4], digits[byte & 15]};
  }
  return text;
}

Image decode(Bytes file, const Decoding& decoding) {
  if (starts_with(file, png_magic)) return decode_png(file, decoding);
  if (starts_with(file, jpeg_magic)) return decode_jpeg(file, decoding);
  if (file.empty()) throw Error("0 bytes, expected a PNG or JPEG file");
  throw Error("not a PNG or JPEG file: it starts with" +
              hexadecimal(file.first(std::min(file.size(), png_magic.size()))));
}

}  // namespace

bool is_image(std::span<const std::uint8_t> file) {
  return starts_with(file, png_magic) || starts_with(file, jpeg_magic);
}

std::vector<std::uint8_t> decode_image(std::span<const std::uint8_t> file,
                                       const Decoding& decoding) {
  check(decoding);
  return fit(decode(file, decoding), decoding);
}

}  // namespace nin
