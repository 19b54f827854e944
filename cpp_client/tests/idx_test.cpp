#include "idx.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <bit>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "nin/error.h"

namespace {

using nin::ElementType;
using nin::tool::decode_idx;
using nin::tool::decode_idx_labels;
using nin::tool::is_idx;
using Buffer = std::vector<std::uint8_t>;
using Labels = std::vector<std::uint32_t>;

const nin::Input grey{"pixels", ElementType::uint8, {28, 28}};
const nin::Input floats{"image", ElementType::float32, {1, 224, 224}};

Buffer read_file(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  EXPECT_TRUE(stream.is_open()) << path;
  return {std::istreambuf_iterator<char>(stream), {}};
}

Buffer operator+(Buffer left, const Buffer& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

Buffer text(std::string_view characters) { return {characters.begin(), characters.end()}; }

Buffer u32(std::uint32_t number) {
  return {static_cast<std::uint8_t>(number >> 24), static_cast<std::uint8_t>(number >> 16),
          static_cast<std::uint8_t>(number >> 8), static_cast<std::uint8_t>(number)};
}

Buffer gzip(Buffer content) {
  constexpr int window_bits = 31;
  z_stream stream{};
  deflateInit2(&stream, 9, Z_DEFLATED, window_bits, 8, Z_DEFAULT_STRATEGY);
  Buffer packed(deflateBound(&stream, static_cast<uLong>(content.size())));
  stream.next_in = content.data();
  stream.avail_in = static_cast<uInt>(content.size());
  stream.next_out = packed.data();
  stream.avail_out = static_cast<uInt>(packed.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

/// What an Error says; "" where none is thrown.
std::string reason(const std::function<void()>& action) {
  try {
    action();
  } catch (const nin::Error& error) {
    return error.what();
  }
  return "";
}

std::string images_error(const Buffer& file, const nin::Input& input = grey) {
  return reason([&] { static_cast<void>(decode_idx(file, input)); });
}

std::string labels_error(const Buffer& file) {
  return reason([&] { static_cast<void>(decode_idx_labels(file)); });
}

Buffer header(const std::vector<std::uint32_t>& numbers) {
  Buffer bytes;
  for (const std::uint32_t number : numbers) bytes = std::move(bytes) + u32(number);
  return bytes;
}

Buffer float_images(float value) {
  Buffer file = header({0x0D04, 1, 1, 224, 224});
  const Buffer bytes = u32(std::bit_cast<std::uint32_t>(value));
  for (std::size_t i = 0; i < 224 * 224; ++i) file.insert(file.end(), bytes.begin(), bytes.end());
  return file;
}

TEST(Idx, ReadsTheRealImages) {
  const std::filesystem::path folder(NIN_DATA_DIR);
  const Buffer images = read_file(folder / "t10k-images-idx3-ubyte.gz");
  EXPECT_TRUE(is_idx(images));
  const nin::tool::Items decoded = decode_idx(images, grey);
  EXPECT_EQ(decoded.pixels.size(), 10000U * 28 * 28);
  EXPECT_TRUE(decoded.images.empty());
  const Labels labels = decode_idx_labels(read_file(folder / "t10k-labels-idx1-ubyte.gz"));
  EXPECT_EQ(labels.size(), 10000U);
  EXPECT_EQ(Labels(labels.begin(), labels.begin() + 5), (Labels{9, 2, 1, 1, 6}));
}

TEST(Idx, ReadsPixelsPlainOrCompressed) {
  const Buffer pixels = Buffer(784, 3) + Buffer(784, 4);
  const Buffer file = header({0x0803, 2, 28, 28}) + pixels;
  EXPECT_EQ(decode_idx(file, grey).pixels, pixels);
  EXPECT_EQ(decode_idx(gzip(file), grey).pixels, pixels);
  EXPECT_EQ(decode_idx(gzip(file) + Buffer(9, 0), grey).pixels, pixels);
  const Buffer in_two =
      gzip({file.begin(), file.begin() + 7}) + gzip({}) + gzip({file.begin() + 7, file.end()});
  EXPECT_EQ(decode_idx(in_two, grey).pixels, pixels);
  EXPECT_TRUE(decode_idx(header({0x0803, 0, 28, 28}), grey).pixels.empty());
}

TEST(Idx, ReadsPixelsOfOtherShapes) {
  const nin::Input rgb{"pixels", ElementType::uint8, {2, 1, 3}};
  const Buffer pixels = {1, 2, 3, 4, 5, 6};
  EXPECT_EQ(decode_idx(header({0x0804, 1, 2, 1, 3}) + pixels, rgb).pixels, pixels);
  EXPECT_EQ(images_error(header({0x0803, 1, 28, 28}), rgb),
            "not an IDX file of 2x1x3 unsigned bytes, which the model takes: its header is "
            "[2051, 1, 28, 28], expected [2052, count, 2, 1, 3]");
}

TEST(Idx, ReadsFloats) {
  const nin::tool::Items decoded = decode_idx(gzip(float_images(-1.5F)), floats);
  EXPECT_TRUE(decoded.pixels.empty());
  EXPECT_EQ(decoded.images, std::vector<float>(224 * 224, -1.5F));
}

TEST(Idx, ReadsLabelsOfEitherSize) {
  EXPECT_EQ(decode_idx_labels(header({0x0801, 2}) + Buffer{7, 255}), (Labels{7, 255}));
  EXPECT_EQ(decode_idx_labels(header({0x0C01, 2, 7, 999})), (Labels{7, 999}));
}

TEST(Idx, RefusesNumbersThatAreNotFinite) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(images_error(float_images(infinity), floats),
            "image 0 holds inf, expected finite numbers");
  EXPECT_EQ(images_error(float_images(std::numeric_limits<float>::quiet_NaN()), floats),
            "image 0 holds nan, expected finite numbers");
}

TEST(Idx, SaysWhatAHeaderHas) {
  EXPECT_EQ(images_error(header({2051, 5, 27, 28})),
            "not an IDX file of 28x28 unsigned bytes, which the model takes: its header is "
            "[2051, 5, 27, 28], expected [2051, count, 28, 28]");
  EXPECT_EQ(images_error(header({0x0D04, 5, 3, 224, 224}), floats),
            "not an IDX file of 1x224x224 floats, which the model takes: its header is "
            "[3332, 5, 3, 224, 224], expected [3332, count, 1, 224, 224]");
  EXPECT_EQ(images_error({0, 0, 8}),
            "not an IDX file of 28x28 unsigned bytes, which the model takes: its header is "
            "[2048], expected [2051, count, 28, 28]");
  EXPECT_EQ(images_error(text("hello, world")),
            "not an IDX file of 28x28 unsigned bytes, which the model takes: its header is "
            "[1751477356, 1865162871], expected [2051, count, 28, 28]");
  EXPECT_EQ(labels_error(header({2051, 5})),
            "not an IDX file of labels: its header is [2051, 5, 0, 0], expected [2049, count] or "
            "[3073, count]");
}

TEST(Idx, SaysWhatAHeaderPromises) {
  const Buffer five = header({2051, 5, 28, 28});
  EXPECT_EQ(images_error(five + Buffer(84, 0)), "promises 5 images, 3936 bytes; it has 100 bytes");
  EXPECT_EQ(images_error(gzip(five)), "promises 5 images, 3936 bytes; it has 16 bytes");
  EXPECT_EQ(images_error(five + Buffer(3921, 0)), "promises 5 images, 3936 bytes; it has more");
  EXPECT_EQ(labels_error(header({2049, 3}) + Buffer(2, 0)),
            "promises 3 labels, 11 bytes; it has 10 bytes");
}

TEST(Idx, TrustsNoHeaderWithItsMemory) {
  EXPECT_EQ(images_error(header({2051, 0xFFFFFFFF, 28, 28})),
            "promises 4294967295 images, more than 2 GiB");
  const Buffer bomb = gzip(header({2051, 1, 28, 28}) + Buffer(50'000'000, 0));
  EXPECT_EQ(images_error(bomb), "promises 1 images, 800 bytes; it has more");
}

TEST(Idx, SaysWhyAFileCannotBeDecompressed) {
  const Buffer file = gzip(header({2049, 4}) + Buffer(4, 1));
  EXPECT_EQ(labels_error({file.begin(), file.end() - 1}),
            "can't decompress: it ends before the end of the compressed data");
  Buffer damaged = file;
  damaged[file.size() - 1] ^= 1;
  EXPECT_EQ(labels_error(damaged), "can't decompress: incorrect length check");
  damaged = file;
  damaged[file.size() - 8] ^= 1;
  EXPECT_EQ(labels_error(damaged), "can't decompress: incorrect data check");
  EXPECT_EQ(labels_error(file + text("rest")), "can't decompress: incorrect header check");
  EXPECT_EQ(labels_error({0x1F, 0x8B}),
            "can't decompress: it ends before the end of the compressed data");
}

TEST(Idx, IsKnownByItsFirstBytes) {
  EXPECT_TRUE(is_idx(header({0x0803})));
  EXPECT_TRUE(is_idx(header({0x0D04})));
  EXPECT_TRUE(is_idx(Buffer{0x1F, 0x8B}));
  EXPECT_FALSE(is_idx(header({0x0003})));
  EXPECT_FALSE(is_idx(Buffer{0, 0, 8}));
  EXPECT_FALSE(is_idx(text("\x89PNG")));
}

}  // namespace
