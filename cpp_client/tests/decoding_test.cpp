#include "nin/decoding.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "nin/error.h"

namespace {

using nin::Decoding;
using Mode = Decoding::Mode;
using Resize = Decoding::Resize;
using Filter = Decoding::Filter;
using Buffer = std::vector<std::uint8_t>;

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

/// As zlib does.
Buffer compress(const Buffer& content) {
  uLongf size = compressBound(static_cast<uLong>(content.size()));
  Buffer packed(size);
  EXPECT_EQ(::compress(packed.data(), &size, content.data(), static_cast<uLong>(content.size())),
            Z_OK);
  packed.resize(size);
  return packed;
}

/// How Fashion-MNIST was made.
constexpr Decoding fitted{Mode::grey, Resize::pad, 28, 28, 0, Filter::bicubic};

Buffer decode_image(const Buffer& file) { return nin::decode_image(file, fitted); }

/// What an Error says; "" where none is thrown.
std::string reason(const std::function<void()>& action) {
  try {
    action();
  } catch (const nin::Error& error) {
    return error.what();
  }
  return "";
}

std::string image_error(const Buffer& file) {
  return reason([&] { static_cast<void>(decode_image(file)); });
}

// --- PNG by hand ---

Buffer chunk(std::string_view name, const Buffer& content) {
  const Buffer named = text(name) + content;
  const auto checksum = crc32(0, named.data(), static_cast<uInt>(named.size()));
  return u32(static_cast<std::uint32_t>(content.size())) + named +
         u32(static_cast<std::uint32_t>(checksum));
}

struct Png {
  std::uint32_t width = 28;
  std::uint32_t height = 28;
  std::uint8_t depth = 8;
  std::uint8_t colour = 0;
  Buffer rows;  // with the byte of the filter before each
  Buffer chunks{};
};

Buffer start(const Png& png) {
  return text("\x89PNG\r\n\x1a\n") +
         chunk("IHDR", u32(png.width) + u32(png.height) + Buffer{png.depth, png.colour, 0, 0, 0});
}

Buffer encode(const Png& png) {
  return start(png) + png.chunks + chunk("IDAT", compress(png.rows)) + chunk("IEND", {});
}

/// As many equal rows of equal pixels.
Buffer repeat(std::size_t height, std::size_t width, const Buffer& pixel) {
  Buffer rows;
  for (std::size_t y = 0; y < height; ++y) {
    rows.push_back(0);
    for (std::size_t x = 0; x < width; ++x) rows = std::move(rows) + pixel;
  }
  return rows;
}

/// Two rows of one pixel each, black above white, with metadata of big-endian EXIF.
Buffer black_over_white(const Buffer& exif) {
  return encode({1, 2, 8, 0, {0, 0, 0, 255}, chunk("eXIf", exif)});
}

Buffer exif(std::uint8_t orientation) {
  return text("MM") + Buffer{0, 42} + u32(8) + Buffer{0, 1, 0x01, 0x12, 0, 3} + u32(1) +
         Buffer{0, orientation, 0, 0} + u32(0);
}

std::uint8_t at(const Buffer& pixels, std::size_t x, std::size_t y) { return pixels[y * 28 + x]; }

TEST(Decoding, KeepsAnImageOf28x28) {
  Buffer rows, expected;
  for (std::size_t y = 0; y < 28; ++y) {
    rows.push_back(0);
    for (std::size_t x = 0; x < 28; ++x) {
      expected.push_back(static_cast<std::uint8_t>(x * 9 ^ y * 7));
      rows.push_back(expected.back());
    }
  }
  EXPECT_EQ(decode_image(encode({.rows = rows})), expected);
}

TEST(Decoding, MakesGreyOfEveryKind) {
  const auto grey = [](std::uint8_t depth, std::uint8_t colour, const Buffer& pixel,
                       const Buffer& chunks) {
    const Png png{28, 28, depth, colour, repeat(28, 28, pixel), chunks};
    const Buffer pixels = decode_image(encode(png));
    EXPECT_EQ(pixels, Buffer(784, pixels[0]));
    return pixels[0];
  };
  EXPECT_EQ(grey(8, 2, {255, 0, 0}, {}), 76);
  EXPECT_EQ(grey(8, 2, {0, 255, 0}, {}), 150);
  EXPECT_EQ(grey(8, 2, {0, 0, 255}, {}), 29);
  EXPECT_EQ(grey(16, 0, {200, 255}, {}), 200);
  EXPECT_EQ(grey(16, 2, {200, 9, 200, 9, 200, 9}, {}), 200);
  EXPECT_EQ(grey(8, 4, {200, 255}, {}), 200);
  EXPECT_EQ(grey(8, 4, {200, 0}, {}), 0);
  EXPECT_EQ(grey(8, 6, {255, 255, 255, 99}, {}), 99);
  EXPECT_EQ(grey(8, 3, {1}, chunk("PLTE", {0, 0, 0, 255, 0, 0})), 76);
  EXPECT_EQ(grey(8, 3, {2}, chunk("PLTE", {0, 0, 0, 255, 0, 0})), 0);  // beyond the palette
  EXPECT_EQ(grey(8, 3, {0}, chunk("PLTE", {255, 255, 255}) + chunk("tRNS", {50})), 50);
  EXPECT_EQ(grey(8, 0, {7}, chunk("tRNS", {0, 7})), 0);
  EXPECT_EQ(grey(8, 2, {7, 8, 9}, chunk("tRNS", {0, 7, 0, 8, 0, 9})), 0);
}

TEST(Decoding, ScalesFewBitsToEight) {
  EXPECT_EQ(decode_image(encode({28, 28, 1, 0, repeat(28, 4, {0xFF})})), Buffer(784, 255));
  EXPECT_EQ(decode_image(encode({28, 28, 2, 0, repeat(28, 7, {0x55})})), Buffer(784, 85));
  EXPECT_EQ(decode_image(encode({28, 28, 4, 0, repeat(28, 14, {0x33})})), Buffer(784, 51));
}

TEST(Decoding, CentresOnBlack) {
  const Buffer wide = decode_image(encode({56, 28, 8, 0, repeat(28, 56, {200})}));
  EXPECT_EQ(at(wide, 0, 6), 0);
  EXPECT_EQ(at(wide, 0, 7), 200);
  EXPECT_EQ(at(wide, 27, 20), 200);
  EXPECT_EQ(at(wide, 27, 21), 0);
  EXPECT_EQ(decode_image(encode({1, 1, 8, 0, {0, 130}})), Buffer(784, 130));
}

TEST(Decoding, RefusesAnEdgeThatVanishes) {
  EXPECT_EQ(image_error(encode({56, 1, 8, 0, repeat(1, 56, {200})})),
            "56x1 pixels, of which an edge vanishes at 28x28");
}

TEST(Decoding, TurnsAnImageUpright) {
  const auto corners = [](const Buffer& file) {
    const Buffer pixels = decode_image(file);
    return Buffer{at(pixels, 14, 0), at(pixels, 14, 27), at(pixels, 0, 14), at(pixels, 27, 14)};
  };
  EXPECT_EQ(corners(black_over_white(exif(1))), (Buffer{0, 255, 0, 0}));
  EXPECT_EQ(corners(black_over_white(exif(3))), (Buffer{255, 0, 0, 0}));
  EXPECT_EQ(corners(black_over_white(exif(5))), (Buffer{0, 0, 0, 255}));
  EXPECT_EQ(corners(black_over_white(exif(8))), (Buffer{0, 0, 0, 255}));
  EXPECT_EQ(corners(black_over_white(exif(6))), (Buffer{0, 0, 255, 0}));
}

TEST(Decoding, IgnoresDamagedMetadata) {
  const Buffer upright = decode_image(black_over_white(exif(1)));
  const Buffer whole = exif(3);
  for (std::size_t size = 0; size < 18; ++size) {
    EXPECT_EQ(decode_image(black_over_white({whole.begin(), whole.begin() + size})), upright);
  }
  EXPECT_EQ(decode_image(black_over_white(exif(9))), upright);
  EXPECT_EQ(decode_image(black_over_white(text("MM") + Buffer{0, 42} + u32(0xFFFFFFFF))), upright);
}

TEST(Decoding, SaysWhatIsNoImage) {
  EXPECT_EQ(image_error({}), "0 bytes, expected a PNG or JPEG file");
  EXPECT_EQ(image_error({0, 1, 0xAB}), "not a PNG or JPEG file: it starts with 00 01 ab");
  EXPECT_EQ(image_error(text("GIF89a, and so on")),
            "not a PNG or JPEG file: it starts with 47 49 46 38 39 61 2c 20");
}

TEST(Decoding, RefusesABombBeforeItIsDecoded) {
  EXPECT_EQ(image_error(start({50000, 1001, 8, 0, {}})),
            "50000x1001 pixels, at most 50000000 are decoded");
  EXPECT_EQ(image_error(start({0xFFFFFFFF, 0xFFFFFFFF, 8, 0, {}})),
            "4294967295x4294967295 pixels, at most 50000000 are decoded");
  EXPECT_EQ(image_error(start({0, 5, 8, 0, {}})), "0x5 pixels, at most 50000000 are decoded");
}

TEST(Decoding, SaysHowAPngIsDamaged) {
  const Png png{.rows = repeat(28, 28, {9})};
  Buffer file = encode(png);
  file[file.size() - 14] ^= 1;  // in the checksum of IDAT
  EXPECT_EQ(image_error(file), "the PNG file is damaged: IDAT: CRC error");
  EXPECT_EQ(image_error(start(png) + chunk("IEND", {})),
            "the PNG file is damaged: IEND: out of place");
  EXPECT_EQ(image_error(encode({.rows = repeat(27, 28, {9})})),
            "the PNG file is damaged: Not enough image data");
  const Buffer packed = compress(png.rows);
  EXPECT_EQ(image_error(start(png) + chunk("IDAT", {packed.begin(), packed.end() - 2}) +
                        chunk("IDAT", {packed.end() - 2, packed.end() - 1}) + chunk("IEND", {})),
            "the PNG file is damaged: IDAT: the compressed data have no right end");
  EXPECT_EQ(image_error(encode({.rows = png.rows + Buffer(70'000, 0)})),
            "the PNG file is damaged: IDAT: too much image data");
  EXPECT_EQ(image_error(start(png) + chunk("IDAT", {9, 9}) + chunk("IEND", {})),
            "the PNG file is damaged: IDAT: incorrect header check");
  EXPECT_EQ(image_error(encode({.rows = Buffer(28 * 29, 7)})),
            "the PNG file is damaged: bad adaptive filter value");
  EXPECT_EQ(image_error(encode({28, 28, 8, 3, repeat(28, 28, {0})})),
            "the PNG file is damaged: IDAT: Missing PLTE before IDAT");
  EXPECT_EQ(image_error(encode({28, 28, 3, 2, {}})), "the PNG file is damaged: Invalid IHDR data");
  EXPECT_EQ(image_error(encode({28, 28, 8, 0, {}, chunk("tRNS", {1})})),
            "the PNG file is damaged: tRNS has 1 bytes, not 2");
  EXPECT_EQ(image_error(text("\x89PNG\r\n\x1a\n") + chunk("IEND", {})),
            "the PNG file is damaged: it doesn't begin with IHDR");
  EXPECT_EQ(image_error(start(png) + chunk("ID\nT", {})),
            "the PNG file is damaged: ID[0A]T: invalid chunk type");
}

TEST(Decoding, SkipsWhatIsNoPartOfAPngsPixels) {
  const Buffer rows = repeat(28, 28, {9});
  const Buffer damaged = chunk("iCCP", {1}) + chunk("zTXt", {'a', 0, 0, 1}) + chunk("neWs", {});
  EXPECT_EQ(decode_image(encode({.rows = rows, .chunks = damaged})), Buffer(784, 9));
  Buffer file = encode({.rows = rows, .chunks = chunk("tEXt", {1})});
  file[8 + 25 + 8] ^= 1;  // but what it holds must be what was written
  EXPECT_EQ(image_error(file), "the PNG file is damaged: tEXt: CRC error");
}

TEST(Decoding, RefusesEveryCutOfAPng) {
  const Buffer file = encode({.rows = repeat(28, 28, {9})});
  for (std::size_t size = 8; size < file.size(); ++size) {
    EXPECT_EQ(image_error({file.begin(), file.begin() + size}), "the PNG file is truncated");
  }
  EXPECT_EQ(image_error(file + text("whatever comes behind")), "");
}

/// An 8x8 JPEG of one grey, by the standard's tables cut down to two codes.
Buffer small_jpeg(const Buffer& segments) {
  const Buffer quantization = Buffer{0xFF, 0xDB, 0, 67, 0} + Buffer(64, 8);
  const Buffer frame = {0xFF, 0xC0, 0, 11, 8, 0, 8, 0, 8, 1, 1, 0x11, 0};
  // each table has one code, 0: of the DC a difference of 0 bits, of the AC the end of the block
  Buffer tables;
  for (const std::uint8_t table : Buffer{0x00, 0x10}) {
    Buffer counts(16, 0);
    counts[0] = 1;
    tables = tables + Buffer{0xFF, 0xC4, 0, 20, table} + counts + Buffer{0};
  }
  const Buffer scan = {0xFF, 0xDA, 0, 8, 1, 1, 0, 0, 63, 0, 0x3F};
  return Buffer{0xFF, 0xD8} + segments + quantization + frame + tables + scan + Buffer{0xFF, 0xD9};
}

TEST(Decoding, DecodesJpeg) {
  EXPECT_EQ(decode_image(small_jpeg({})), Buffer(784, 128));
  EXPECT_EQ(image_error(small_jpeg({}) + text("whatever comes behind")), "");
  const Buffer metadata = text(std::string_view("Exif\0\0", 6)) + exif(6);
  const Buffer app1 = {0xFF, 0xE1, 0, static_cast<std::uint8_t>(metadata.size() + 2)};
  EXPECT_EQ(decode_image(small_jpeg(app1 + metadata)), Buffer(784, 128));
}

TEST(Decoding, RefusesEveryCutOfAJpeg) {
  const Buffer file = small_jpeg({});
  for (std::size_t size = 3; size < file.size(); ++size) {
    const std::string error = image_error({file.begin(), file.begin() + size});
    EXPECT_EQ(error, "the JPEG file is truncated");
  }
}

TEST(Decoding, SaysHowAJpegIsDamaged) {
  const Buffer whole = small_jpeg({});
  const auto changed = [&](std::size_t before_end, std::uint8_t byte) {
    Buffer file = whole;
    file[file.size() - before_end] = byte;
    return image_error(file);
  };
  const std::string damaged = "the JPEG file is damaged: ";
  EXPECT_EQ(image_error({0xFF, 0xD8, 0xFF, 0xD9}), damaged + "scans are missing");
  EXPECT_EQ(image_error(small_jpeg(Buffer{0xFF, 0xC4, 0, 19} + Buffer(17, 255))),
            damaged + "Bogus Huffman table definition");
  EXPECT_EQ(image_error(small_jpeg({0xFF, 0xFE, 0, 2, 0})),
            damaged + "there is no marker where one is due");
  EXPECT_EQ(image_error(small_jpeg({0xFF, 0xCC, 0, 2})),
            damaged + "its kind isn't decoded, or its parts are in no order");
  EXPECT_EQ(image_error(small_jpeg({0xFF, 0xC0, 0, 2})), damaged + "its frame is wrong");
  EXPECT_EQ(changed(9, 2), damaged + "a scan's header is wrong");
  EXPECT_EQ(changed(8, 7), damaged + "a scan's header is wrong");
  const Buffer end = {whole.end() - 2, whole.end()};
  const Buffer scan = {whole.end() - 13, whole.end() - 2};
  EXPECT_EQ(image_error(Buffer(whole.begin(), whole.end() - 2) + scan + end),
            damaged + "scans are missing");
  EXPECT_EQ(image_error(Buffer(whole.begin(), whole.end() - 2) + Buffer{0xFF, 0xD0} + end),
            damaged + "restart markers are missing");
  Buffer large = whole;
  large[2 + 69 + 5] = large[2 + 69 + 7] = 0xFF;
  EXPECT_EQ(image_error(large), "65288x65288 pixels, at most 50000000 are decoded");
}

TEST(Decoding, RefusesAScanWhoseDataEndEarly) {
  const std::filesystem::path corpus =
      std::filesystem::path(NIN_TEST_DATA_DIR) / "../../fuzz/corpus/image";
  for (const char* name : {"grey.jpg", "rgb.jpg", "progressive.jpg", "restarts.jpg", "cmyk.jpg"}) {
    Buffer file = read_file(corpus / name);
    EXPECT_EQ(image_error(file), "") << name;
    file.erase(file.end() - 8, file.end() - 2);
    EXPECT_EQ(image_error(file), "the JPEG file is damaged: a scan's data end early") << name;
  }
}

TEST(Decoding, DecodesAJpegOfWhichLibjpegOnlyWarns) {
  const Buffer jfif = Buffer{0xFF, 0xE0, 0, 16} + text(std::string_view("JFIF\0", 5)) +
                      Buffer{2, 1, 0, 0, 1, 0, 1, 0, 0};  // version 2.1
  EXPECT_EQ(decode_image(small_jpeg(jfif)), Buffer(784, 128));
  Buffer file = small_jpeg({});
  file.insert(file.end() - 2, 3, 0x55);  // stray bytes before the end
  EXPECT_EQ(decode_image(file), Buffer(784, 128));
}

TEST(Decoding, SurvivesWhatFuzzersFound) {
  const std::filesystem::path folder = std::filesystem::path(NIN_TEST_DATA_DIR) / "regressions";
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    const Buffer file = read_file(entry.path());
    EXPECT_EQ(image_error(file).find('\n'), std::string::npos) << entry.path();
  }
}

// --- RGB and other sizes; tests/test_cpp_images.py compares them with Pillow ---

TEST(Decoding, KeepsTheColours) {
  const Decoding rgb{Mode::rgb, Resize::stretch, 2, 3, 0, Filter::bilinear};
  const auto colour = [&](std::uint8_t depth, std::uint8_t type, const Buffer& pixel,
                          const Buffer& chunks) {
    const Buffer file = encode({3, 2, depth, type, repeat(2, 3, pixel), chunks});
    const Buffer pixels = nin::decode_image(file, rgb);
    EXPECT_EQ(pixels.size(), 18U);
    return Buffer(pixels.end() - 3, pixels.end());
  };
  EXPECT_EQ(colour(8, 2, {1, 2, 3}, {}), (Buffer{1, 2, 3}));
  EXPECT_EQ(colour(8, 0, {7}, {}), (Buffer{7, 7, 7}));
  EXPECT_EQ(colour(16, 0, {7, 255}, {}), (Buffer{7, 7, 7}));
  EXPECT_EQ(colour(8, 4, {200, 0}, {}), (Buffer{0, 0, 0}));
  EXPECT_EQ(colour(8, 6, {255, 0, 255, 99}, {}), (Buffer{99, 0, 99}));
  EXPECT_EQ(colour(8, 3, {1}, chunk("PLTE", {0, 0, 0, 9, 8, 7})), (Buffer{9, 8, 7}));
  EXPECT_EQ(colour(8, 2, {7, 8, 9}, chunk("tRNS", {0, 7, 0, 8, 0, 9})), (Buffer{0, 0, 0}));
}

TEST(Decoding, PadsToAnySize) {
  const Buffer square = encode({4, 4, 8, 0, repeat(4, 4, {200})});
  EXPECT_EQ(nin::decode_image(square, {Mode::grey, Resize::pad, 2, 5, 0, Filter::bicubic}),
            (Buffer{0, 0, 200, 200, 0, 0, 0, 200, 200, 0}));  // the margin of 1.5 becomes 2
}

TEST(Decoding, CropsTheCentre) {
  Buffer rows;
  for (std::uint8_t y = 0; y < 2; ++y) rows = std::move(rows) + Buffer{0, 10, 20, 30, 40, 50};
  const Buffer wide = encode({5, 2, 8, 0, rows});
  EXPECT_EQ(nin::decode_image(wide, {Mode::grey, Resize::crop, 2, 2, 2, Filter::bilinear}),
            (Buffer{30, 40, 30, 40}));  // 1.5 columns before become 2
  EXPECT_EQ(nin::decode_image(wide, {Mode::grey, Resize::crop, 3, 3, 2, Filter::bilinear}),
            (Buffer{20, 30, 40, 20, 30, 40, 0, 0, 0}));  // black below
}

TEST(Decoding, ChecksTheSizeOfAnImageOnceItIsUpright) {
  const Decoding wide{Mode::grey, Resize::pad, 2, 100, 0, Filter::bicubic};
  const auto error = [&](std::uint8_t orientation) {
    const Png png{1, 60, 8, 0, repeat(60, 1, {9}), chunk("eXIf", exif(orientation))};
    return reason([&] { (void)nin::decode_image(encode(png), wide); });
  };
  EXPECT_EQ(error(1), "1x60 pixels, of which an edge vanishes at 100x2");
  EXPECT_EQ(error(6), "");
}

TEST(Decoding, RefusesWhatWouldBecomeTooLarge) {
  const Decoding crop{Mode::rgb, Resize::crop, 224, 224, 256, Filter::bilinear};
  EXPECT_EQ(reason([&] { (void)nin::decode_image(start({20, 60000, 8, 0, {}}), crop); }),
            "20x60000 pixels, which would become 256x768000 pixels, at most 50000000");
}

TEST(Decoding, RefusesADecodingThatMakesNoSense) {
  const auto error = [](const Decoding& decoding) {
    return reason([&] { (void)nin::decode_image({}, decoding); });
  };
  EXPECT_EQ(error({Mode::grey, Resize::pad, 0, 28, 0, Filter::bicubic}),
            "images can't be made 28x0 pixels; an edge has 1 to 65535, and all 50000000 at most");
  for (const std::size_t edge : {std::size_t{60'000}, std::size_t{1} << 63}) {
    EXPECT_NE(error({Mode::grey, Resize::stretch, edge, edge, 0, Filter::bicubic}), "");
  }
  EXPECT_EQ(error({Mode::grey, Resize::crop, 28, 28, 0, Filter::bicubic}),
            "a shorter side can't have 0 pixels, expected 1 to 65535");
}

}  // namespace
