// Our own reader rather than stb's: that one doesn't verify checksums, and reads 16 bits, keys of
// transparency and indices beyond the palette otherwise than Pillow.

#include "png.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <string>

#include "inflater.h"
#include "nin/error.h"

namespace nin {
namespace {

[[noreturn]] void damaged(const std::string& how) {
  throw Error("the PNG file is damaged: " + how);
}

// --- chunks ---

struct Chunk {
  std::string name;
  Bytes content;
};

bool is_name(std::string_view name) {
  return std::ranges::all_of(
      name, [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); });
}

/// Cuts the first chunk off the rest of a file: length, name, content, checksum.
Chunk take_chunk(Bytes& rest) {
  constexpr std::size_t around = 12;
  if (rest.size() < around || read_u32(rest, 0) > rest.size() - around) {
    throw Error("the PNG file is truncated");
  }
  const std::size_t length = read_u32(rest, 0);
  const Bytes named = rest.subspan(4, 4 + length);
  const std::string name(named.begin(), named.begin() + 4);
  if (!is_name(name)) damaged("a chunk's name isn't four letters");
  if (crc32_z(0, named.data(), named.size()) != read_u32(rest, 8 + length)) {
    damaged("chunk " + name + " has a wrong checksum");
  }
  rest = rest.subspan(around + length);
  return {name, named.subspan(4)};
}

bool is_valid_depth(unsigned colour, unsigned depth) {
  if (colour == 0) return depth <= 16 && std::has_single_bit(depth);
  if (colour == 3) return depth <= 8 && std::has_single_bit(depth);
  return (colour == 2 || colour == 4 || colour == 6) && (depth == 8 || depth == 16);
}

PngFile parse_header(const Chunk& chunk) {
  if (chunk.name != "IHDR" || chunk.content.size() < 13) damaged("it doesn't begin with IHDR");
  const Bytes header = chunk.content;
  PngFile png{read_u32(header, 0),
              read_u32(header, 4),
              header[8],
              header[9],
              header[12] != 0,
              {},
              {},
              {},
              {}};
  check_size(png.width, png.height);
  if (!is_valid_depth(png.colour, png.depth)) {
    damaged("its colour type is " + std::to_string(png.colour) + " with " +
            std::to_string(png.depth) + " bits");
  }
  if (header[10] != 0 || header[11] != 0) damaged("its compression or filter method is unknown");
  return png;
}

void check_auxiliary(const PngFile& png) {
  if (png.data.empty()) damaged("it has no IDAT");
  if (png.colour == 3 && !png.palette) damaged("it has no PLTE");
  if (png.colour == 3 && png.palette->size() > 256 * 3) damaged("PLTE has more than 256 colours");
  if (!png.transparency) return;
  const std::size_t size = png.transparency->size();
  if (png.colour == 3 && size > 256) damaged("tRNS has more than 256 entries");
  if (png.colour == 0 && size < 2) damaged("tRNS has " + std::to_string(size) + " bytes, not 2");
  if (png.colour == 2 && size < 6) damaged("tRNS has " + std::to_string(size) + " bytes, not 6");
}

// --- rows ---

unsigned channels(unsigned colour) {
  return colour == 2 ? 3 : colour == 4 ? 2 : colour == 6 ? 4 : 1;
}

/// The rows, decompressed one by one, so that no more memory is used than the image needs.
class RowReader {
 public:
  explicit RowReader(const PngFile& png) : chunks_(png.data) {}

  void read(std::span<std::uint8_t> row) {
    for (std::size_t done = inflate(row); done < row.size(); done += inflate(row.subspan(done))) {
      if (inflater_.ended() || chunks_.empty()) damaged("its IDAT ends before the last row");
      inflater_.feed(chunks_.front());
      chunks_ = chunks_.subspan(1);
    }
  }

 private:
  std::size_t inflate(std::span<std::uint8_t> output) try {
    return inflater_.read(output);
  } catch (const Error& error) {
    damaged(std::string("can't decompress IDAT: ") + error.what());
  }

  std::span<const Bytes> chunks_;
  Inflater inflater_{Inflater::Format::zlib};
};

std::uint8_t paeth(int left, int up, int corner) {
  const int to_left = std::abs(up - corner), to_up = std::abs(left - corner);
  const int to_corner = std::abs(left + up - 2 * corner);
  if (to_left <= to_up && to_left <= to_corner) return static_cast<std::uint8_t>(left);
  return static_cast<std::uint8_t>(to_up <= to_corner ? up : corner);
}

std::uint8_t predict(unsigned filter, std::uint8_t left, std::uint8_t up, std::uint8_t corner) {
  switch (filter) {
    case 1:
      return left;
    case 2:
      return up;
    case 3:
      return static_cast<std::uint8_t>((left + up) / 2);
    case 4:
      return paeth(left, up, corner);
    default:
      damaged("filter " + std::to_string(filter) + " is unknown");
  }
}

/// Undoes a row's filter; `step` bytes lie between a byte and the same one of the pixel before.
void unfilter(unsigned filter, std::span<std::uint8_t> row, Bytes above, std::size_t step) {
  if (filter == 0) return;
  for (std::size_t i = 0; i < row.size(); ++i) {
    const std::uint8_t left = i < step ? std::uint8_t{0} : row[i - step];
    const std::uint8_t corner = i < step ? std::uint8_t{0} : above[i - step];
    row[i] = static_cast<std::uint8_t>(row[i] + predict(filter, left, above[i], corner));
  }
}

// --- grey ---

/// Grey of each value of a single sample; of 16 bits the upper 8, whatever tRNS says, as Pillow.
std::array<std::uint8_t, 256> grey_table(const PngFile& png) {
  std::array<std::uint8_t, 256> table{};
  const unsigned largest = png.depth >= 8 ? 255 : (1U << png.depth) - 1;
  for (unsigned i = 0; i <= largest; ++i) table[i] = static_cast<std::uint8_t>(i * 255 / largest);
  if (!png.transparency || png.depth == 16) return table;
  // Pillow holds the key against the scaled values, except of 1 bit
  const std::uint32_t key = read_u16(*png.transparency, 0);
  const std::uint32_t value = png.depth == 1 ? (key != 0 ? 255 : 0) : key & 0xFF;
  std::ranges::replace(table, static_cast<std::uint8_t>(value), std::uint8_t{0});
  return table;
}

/// Grey of each index; black beyond the palette's end.
std::array<std::uint8_t, 256> palette_table(const PngFile& png) {
  std::array<std::uint8_t, 256> table{};
  const Bytes colours = *png.palette, alphas = png.transparency.value_or(Bytes());
  for (std::size_t i = 0; i < colours.size() / 3; ++i) {
    const Bytes rgb = colours.subspan(3 * i, 3);
    const std::uint8_t alpha = i < alphas.size() ? alphas[i] : std::uint8_t{255};
    const auto shown = [&](std::size_t channel) { return over_black(rgb[channel], alpha); };
    table[i] = luma(shown(0), shown(1), shown(2));
  }
  return table;
}

/// Turns samples into grey.
class Shader {
 public:
  explicit Shader(const PngFile& png) : depth_(png.depth), channels_(channels(png.colour)) {
    if (png.colour == 0) table_ = grey_table(png);
    if (png.colour == 3) table_ = palette_table(png);
    if (png.colour != 2 || !png.transparency) return;
    // of 16 bits, Pillow holds the key's lower 8 against the upper 8 of the samples
    const Bytes key = *png.transparency;
    key_ = {key[1], key[3], key[5]};
  }

  [[nodiscard]] std::uint8_t grey(Bytes row, std::size_t column) const {
    const std::size_t first = column * channels_;
    if (channels_ == 1) return table_[sample(row, first)];
    const std::uint8_t red = sample(row, first), second = sample(row, first + 1);
    if (channels_ == 2) return over_black(red, second);
    const std::uint8_t blue = sample(row, first + 2);
    if (channels_ == 3) {
      const bool transparent = key_ == std::array{red, second, blue};
      return transparent ? std::uint8_t{0} : luma(red, second, blue);
    }
    const std::uint8_t alpha = sample(row, first + 3);
    return luma(over_black(red, alpha), over_black(second, alpha), over_black(blue, alpha));
  }

 private:
  [[nodiscard]] std::uint8_t sample(Bytes row, std::size_t index) const {
    if (depth_ >= 8) return row[index * (depth_ / 8)];
    const std::size_t bit = index * depth_;
    const unsigned shift = 8 - depth_ - static_cast<unsigned>(bit % 8);
    return static_cast<std::uint8_t>(row[bit / 8] >> shift & ((1U << depth_) - 1));
  }

  unsigned depth_;
  unsigned channels_;
  std::array<std::uint8_t, 256> table_{};
  std::optional<std::array<std::uint8_t, 3>> key_;
};

/// The pixels that come together: each `dx`-th of each `dy`-th row, from (x, y) on.
struct Pass {
  std::size_t x, y, dx, dy;
};

constexpr std::array<Pass, 1> in_order = {{{0, 0, 1, 1}}};
constexpr std::array<Pass, 7> adam7 = {{{0, 0, 8, 8},
                                        {4, 0, 8, 8},
                                        {0, 4, 4, 8},
                                        {2, 0, 4, 4},
                                        {0, 2, 2, 4},
                                        {1, 0, 2, 2},
                                        {0, 1, 1, 2}}};

void decode_pass(const PngFile& png, const Pass& pass, RowReader& reader, const Shader& shader,
                 GreyImage& image) {
  if (pass.x >= png.width) return;
  const std::size_t columns = (png.width - pass.x + pass.dx - 1) / pass.dx;
  const std::size_t bits = std::size_t{png.depth} * channels(png.colour);
  // of each row, a byte says how it is filtered
  std::vector<std::uint8_t> row(1 + (columns * bits + 7) / 8), above(row.size());
  for (std::size_t y = pass.y; y < png.height; y += pass.dy) {
    reader.read(row);
    unfilter(row[0], std::span(row).subspan(1), Bytes(above).subspan(1), (bits + 7) / 8);
    const Bytes samples = Bytes(row).subspan(1);
    for (std::size_t i = 0; i < columns; ++i) {
      image.pixels[y * png.width + pass.x + i * pass.dx] = shader.grey(samples, i);
    }
    row.swap(above);
  }
}

}  // namespace

PngFile parse_png(Bytes file) {
  Bytes rest = file.subspan(png_magic.size());
  PngFile png = parse_header(take_chunk(rest));
  bool data_ended = false;  // only the IDAT that follow one another hold the image
  for (Chunk chunk = take_chunk(rest); chunk.name != "IEND"; chunk = take_chunk(rest)) {
    const bool is_data = chunk.name == "IDAT";
    data_ended = data_ended || (!is_data && !png.data.empty());
    if (is_data && !data_ended) png.data.push_back(chunk.content);
    if (chunk.name == "PLTE" && png.data.empty()) png.palette = chunk.content;
    if (chunk.name == "tRNS") png.transparency = chunk.content;
    if (chunk.name == "eXIf") png.exif = chunk.content;
  }
  check_auxiliary(png);
  return png;
}

GreyImage decode_png(const PngFile& png) {
  RowReader reader(png);
  const Shader shader(png);
  GreyImage image{png.width, png.height, std::vector<std::uint8_t>(png.width * png.height)};
  const auto passes = png.interlaced ? std::span<const Pass>(adam7) : in_order;
  for (const Pass& pass : passes) decode_pass(png, pass, reader, shader, image);
  return image;
}

}  // namespace nin
