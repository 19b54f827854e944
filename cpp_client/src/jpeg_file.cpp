#include "jpeg_file.h"

#include <turbojpeg.h>

#include <algorithm>
#include <array>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "exif.h"
#include "jpeg_segments.h"
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

  /// The samples of all pixels, of a format of TurboJPEG, written over `samples`. Returns whether
  /// libjpeg had no warning.
  [[nodiscard]] bool decode(Bytes file, const JpegHeader& header, int format, int flags,
                            std::vector<std::uint8_t>& samples) {
    const int width = static_cast<int>(header.width), height = static_cast<int>(header.height);
    const int status = tjDecompress2(handle_.get(), file.data(), file.size(), samples.data(), width,
                                     0, height, format, flags | TJFLAG_ACCURATEDCT);
    if (status != 0 && tjGetErrorCode(handle_.get()) == TJERR_FATAL) fail();
    return status == 0;
  }

 private:
  [[noreturn]] void fail() {
    throw Error(std::string("the JPEG file is damaged: ") + tjGetErrorStr2(handle_.get()));
  }

  std::unique_ptr<void, decltype(&tjDestroy)> handle_;
};

/// The samples of all pixels. Where libjpeg warns, what it makes of the file counts nevertheless,
/// unless it depends on what comes behind the data, which then ended early.
std::vector<std::uint8_t> decode_whole(Decompressor& jpeg, Bytes file, Bytes split,
                                       const JpegHeader& header, int format) {
  constexpr std::array<std::uint8_t, 8> behind{0xFE, 0x5A, 0xC3, 0xA5, 0x96, 0x69, 0x3C, 0x0F};
  const std::size_t size =
      header.width * header.height * static_cast<std::size_t>(tjPixelSize[format]);
  std::vector<std::uint8_t> samples(size);
  if (jpeg.decode(split, header, format, TJFLAG_STOPONWARNING, samples)) return samples;
  // an error behind a warning can't be told from it, but leaves samples as they were
  std::vector<std::uint8_t> others(size, 255);
  std::ranges::fill(samples, std::uint8_t{0});
  static_cast<void>(jpeg.decode(split, header, format, 0, samples));
  static_cast<void>(jpeg.decode(split_jpeg(file, behind).file, header, format, 0, others));
  if (samples != others) throw Error("the JPEG file is damaged: a scan's data end early");
  return samples;
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

JpegHeader read_jpeg_header(Bytes file) {
  return Decompressor().read_header(split_jpeg(file).file);
}

Image decode_jpeg(Bytes file, const Decoding& decoding) {
  Decompressor jpeg;
  const JpegParts parts = split_jpeg(file);
  const JpegHeader header = jpeg.read_header(parts.file);
  const int orientation = read_orientation(parts.exif);
  check_size({header.width, header.height, orientation}, decoding);
  const int format = sample_format(header.colour_space);
  const auto step = static_cast<std::size_t>(tjPixelSize[format]);
  const std::vector<std::uint8_t> samples = decode_whole(jpeg, file, parts.file, header, format);
  Image image = make_image(header.width, header.height, decoding.mode);
  for (std::size_t at = 0; at < samples.size(); at += step) {
    append(image, colour_of(Bytes(samples).subspan(at, step)));
  }
  return transpose(std::move(image), orientation);
}

}  // namespace nin
