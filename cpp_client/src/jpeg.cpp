#include "jpeg.h"

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_JPEG
#define STBI_NO_STDIO
#define STBI_FAILURE_USERMSG
#define STBI_MAX_DIMENSIONS 65535
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"  // of a static library, we use a few functions
#endif
#include <stb/stb_image.h>
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "jpeg_markers.h"
#include "nin/error.h"

namespace nin {
namespace {

int stb_size(Bytes file) {
  constexpr std::size_t most = std::numeric_limits<int>::max();
  if (file.size() > most) throw Error("the JPEG file has more than 2 GB");
  return static_cast<int>(file.size());
}

[[noreturn]] void undecodable() {
  throw Error(std::string("the JPEG file can't be decoded: ") + stbi_failure_reason());
}

}  // namespace

JpegFile parse_jpeg(Bytes file) {
  std::vector<std::uint8_t> exif = walk_jpeg(file);  // before stb sees it, which trusts it
  int width = 0, height = 0, channels = 0;
  if (stbi_info_from_memory(file.data(), stb_size(file), &width, &height, &channels) == 0) {
    undecodable();
  }
  check_size(static_cast<std::size_t>(width), static_cast<std::size_t>(height));
  return {static_cast<std::size_t>(width), static_cast<std::size_t>(height), file, std::move(exif)};
}

GreyImage decode_jpeg(const JpegFile& jpeg) {
  int width = 0, height = 0, channels = 0;
  const std::unique_ptr<stbi_uc, decltype(&stbi_image_free)> decoded(
      stbi_load_from_memory(jpeg.file.data(), stb_size(jpeg.file), &width, &height, &channels, 0),
      stbi_image_free);
  if (decoded == nullptr) undecodable();
  GreyImage image{jpeg.width, jpeg.height, {}};
  const std::size_t count = image.width * image.height;
  const Bytes samples(decoded.get(), count * static_cast<std::size_t>(channels));
  if (channels == 1) {
    image.pixels.assign(samples.begin(), samples.end());
    return image;
  }
  image.pixels.reserve(count);
  for (std::size_t i = 0; i < samples.size(); i += 3) {
    image.pixels.push_back(luma(samples[i], samples[i + 1], samples[i + 2]));
  }
  return image;
}

}  // namespace nin
