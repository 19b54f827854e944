#include "jpeg_file.h"

#include <turbojpeg.h>

#include <algorithm>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "exif.h"
#include "nin/error.h"

namespace nin {
namespace {

/// TurboJPEG's decompressor.
class Decompressor {
 public:
  Decompressor() : handle_(tjInitDecompress(), tjDestroy) {
    if (handle_ == nullptr) throw std::bad_alloc();
  }

  [[nodiscard]] JpegHeader read_header(Bytes file) {
    int width = 0, height = 0, subsampling = 0, colour_space = -1;
    // it fails as well where it has no name for the subsampling, which can be decoded all the same
    tjDecompressHeader3(handle_.get(), file.data(), file.size(), &width, &height, &subsampling,
                        &colour_space);
    if (width < 1 || height < 1 || colour_space < 0) fail();
    return {static_cast<std::size_t>(width), static_cast<std::size_t>(height), colour_space};
  }

  /// The samples of all pixels, of a format of TurboJPEG.
  [[nodiscard]] std::vector<std::uint8_t> decode(Bytes file, const JpegHeader& header, int format) {
    constexpr int flags = TJFLAG_ACCURATEDCT | TJFLAG_STOPONWARNING | TJFLAG_LIMITSCANS;
    std::vector<std::uint8_t> samples(header.width * header.height *
                                      static_cast<std::size_t>(tjPixelSize[format]));
    const int width = static_cast<int>(header.width), height = static_cast<int>(header.height);
    const int status = tjDecompress2(handle_.get(), file.data(), file.size(), samples.data(), width,
                                     0, height, format, flags);
    if (status != 0) fail();
    return samples;
  }

 private:
  [[noreturn]] void fail() {
    throw Error(std::string("the JPEG file is damaged: ") + tjGetErrorStr2(handle_.get()));
  }

  std::unique_ptr<void, decltype(&tjDestroy)> handle_;
};

/// The first Exif segment before the scan, without its prefix; empty if there is none.
Bytes find_exif(Bytes file) {
  constexpr std::uint8_t app1 = 0xE1, start_of_scan = 0xDA, fill = 0xFF;
  constexpr std::string_view prefix{"Exif\0\0", 6};
  std::size_t at = 2;
  while (at + 4 <= file.size() && file[at] == 0xFF) {
    const std::uint8_t marker = file[at + 1];
    if (marker == fill) {
      ++at;
      continue;
    }
    if (marker == start_of_scan || marker < 0xC0 || (marker >= 0xD0 && marker <= 0xD9)) break;
    // libjpeg forgives less than the length's own two bytes
    const std::size_t size = std::max(read_u16(file, at + 2), 2U);
    if (size > file.size() - at - 2) break;
    const Bytes segment = file.subspan(at + 4, size - 2);
    if (marker == app1 && starts_with(segment, prefix)) return segment.subspan(prefix.size());
    at += 2 + size;
  }
  return {};
}

/// The product of two samples, of which 255 is 1, in Pillow's fixed point.
std::uint32_t times(std::uint32_t a, std::uint32_t b) {
  const std::uint32_t product = a * b + 128;
  return ((product >> 8) + product) >> 8;
}

/// The colour of one pixel's samples, of ink if there are four: inverted, as Adobe's are.
Colour colour_of(Bytes pixel) {
  if (pixel.size() == 1) return {pixel[0], pixel[0], pixel[0]};
  if (pixel.size() == 3) return {pixel[0], pixel[1], pixel[2]};
  const std::uint32_t white = pixel[3];
  const auto light = [&](std::size_t ink) {
    return static_cast<std::uint8_t>(white - times(255U - pixel[ink], white));
  };
  return {light(0), light(1), light(2)};
}

int sample_format(int colour_space) {
  if (colour_space == TJCS_GRAY) return TJPF_GRAY;
  return colour_space == TJCS_CMYK || colour_space == TJCS_YCCK ? TJPF_CMYK : TJPF_RGB;
}

}  // namespace

JpegHeader read_jpeg_header(Bytes file) { return Decompressor().read_header(file); }

Image decode_jpeg(Bytes file, const Decoding& decoding) {
  Decompressor jpeg;
  const JpegHeader header = jpeg.read_header(file);
  const int orientation = read_orientation(find_exif(file));
  check_size({header.width, header.height, orientation}, decoding);
  const int format = sample_format(header.colour_space);
  const auto step = static_cast<std::size_t>(tjPixelSize[format]);
  const std::vector<std::uint8_t> samples = jpeg.decode(file, header, format);
  Image image = make_image(header.width, header.height, decoding.mode);
  for (std::size_t at = 0; at < samples.size(); at += step) {
    append(image, colour_of(Bytes(samples).subspan(at, step)));
  }
  return transpose(std::move(image), orientation);
}

}  // namespace nin
