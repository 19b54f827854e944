// Feeds PNG and JPEG files to the decoder. Checksums of PNG chunks are put right first, or nothing
// behind them would ever be reached.

#include <zlib.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "bytes.h"
#include "jpeg_file.h"
#include "nin/decoding.h"
#include "nin/error.h"
#include "png_file.h"

namespace {

constexpr std::size_t max_pixels = 1 << 18;  // larger ones are only slower

void write_u32(std::span<std::uint8_t> bytes, std::uint32_t number) {
  for (std::size_t i = 0; i < 4; ++i) {
    bytes[i] = static_cast<std::uint8_t>(number >> (24 - 8 * i));
  }
}

void correct_checksums(std::span<std::uint8_t> png) {
  std::size_t at = nin::png_magic.size();
  while (png.size() >= at + 12 && nin::read_u32(png, at) <= png.size() - at - 12) {
    const std::size_t length = nin::read_u32(png, at);
    const auto checksum = crc32_z(0, &png[at + 4], length + 4);
    write_u32(png.subspan(at + 8 + length), static_cast<std::uint32_t>(checksum));
    at += 12 + length;
  }
}

bool is_png(nin::Bytes file) { return nin::starts_with(file, nin::png_magic); }

bool is_small(nin::Bytes file) {
  if (is_png(file) && file.size() >= 24) {
    return std::uint64_t{nin::read_u32(file, 16)} * nin::read_u32(file, 20) <= max_pixels;
  }
  if (!nin::starts_with(file, nin::jpeg_magic)) return true;
  const nin::JpegHeader jpeg = nin::read_jpeg_header(file);
  return jpeg.width * jpeg.height <= max_pixels;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using enum nin::Decoding::Mode;
  using enum nin::Decoding::Resize;
  using enum nin::Decoding::Filter;
  std::vector<std::uint8_t> file(data, data + size);
  if (is_png(file)) correct_checksums(file);
  for (const nin::Decoding& decoding : {nin::Decoding{grey, pad, 28, 28, 0, bicubic},
                                        nin::Decoding{rgb, crop, 24, 20, 22, bilinear},
                                        nin::Decoding{rgb, stretch, 9, 40, 0, bicubic}}) {
    try {
      if (is_small(file)) static_cast<void>(nin::decode_image(file, decoding));
    } catch (const nin::Error&) {  // what is wrong with a file must be said in no other way
    }
  }
  return 0;
}
