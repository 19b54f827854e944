#include "png_file.h"

#include <png.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "exif.h"
#include "nin/error.h"

namespace nin {
namespace {

[[noreturn]] void damaged(const std::string& how) {
  throw Error("the PNG file is damaged: " + how);
}

// --- libpng ---

/// What libpng's callbacks work on. No exception may pass through libpng: they keep the reason.
struct Source {
  Bytes rest;
  bool truncated = false;
  std::array<char, 128> reason{};
};

[[noreturn]] void keep_reason(png_structp png, png_const_charp message) {
  auto* source = static_cast<Source*>(png_get_error_ptr(png));
  std::snprintf(source->reason.data(), source->reason.size(), "%s", message);
  png_longjmp(png, 1);
}

void ignore_warning(png_structp /*png*/, png_const_charp /*message*/) {}

void read_source(png_structp png, png_bytep output, std::size_t size) {
  auto* source = static_cast<Source*>(png_get_io_ptr(png));
  source->truncated = size > source->rest.size();
  if (source->truncated) png_error(png, "");
  std::memcpy(output, source->rest.data(), size);
  source->rest = source->rest.subspan(size);
}

/// Owns libpng's state.
struct State {
  explicit State(Source* source)
      : png(png_create_read_struct(PNG_LIBPNG_VER_STRING, source, keep_reason, ignore_warning)),
        info(png_create_info_struct(png)) {}
  ~State() { png_destroy_read_struct(&png, &info, nullptr); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  png_structp png;
  png_infop info;
};

/// A PNG file: what is known of it once its header has been read, and its samples.
class PngReader {
 public:
  explicit PngReader(Bytes file) : source_{file} {
    if (state_.info == nullptr) throw std::bad_alloc();
    png_set_read_fn(png_, &source_, read_source);
    attempt([this] {
      set_options();
      png_read_info(png_, info_);
      depth_ = png_get_bit_depth(png_, info_);
      png_set_packing(png_);   // a byte for each sample:
      png_set_strip_16(png_);  // of 16 bits the upper 8
      png_set_interlace_handling(png_);
      png_read_update_info(png_, info_);
    });
  }

  [[nodiscard]] std::size_t width() const { return png_get_image_width(png_, info_); }
  [[nodiscard]] std::size_t height() const { return png_get_image_height(png_, info_); }
  [[nodiscard]] unsigned colour() const { return png_get_color_type(png_, info_); }
  [[nodiscard]] unsigned depth() const { return depth_; }  ///< bits of a sample in the file
  [[nodiscard]] std::size_t channels() const { return png_get_channels(png_, info_); }
  [[nodiscard]] std::size_t row_size() const { return png_get_rowbytes(png_, info_); }

  [[nodiscard]] std::span<const png_color> palette() const {
    png_colorp colours = nullptr;
    int count = 0;
    png_get_PLTE(png_, info_, &colours, &count);
    return {colours, static_cast<std::size_t>(count)};
  }

  /// The last tRNS before the samples, for they are looked for before those are read.
  [[nodiscard]] std::optional<Bytes> transparency() const {
    png_unknown_chunkp chunks = nullptr;
    const auto count = static_cast<std::size_t>(png_get_unknown_chunks(png_, info_, &chunks));
    if (count == 0) return std::nullopt;
    return Bytes(chunks[count - 1].data, chunks[count - 1].size);
  }

  /// Bytes of all rows in the file, each with that of its filter.
  [[nodiscard]] std::size_t size_in_file() const {
    const auto bits = static_cast<std::uint32_t>(channels() * depth_);
    const auto size_of = [bits](std::size_t columns, std::size_t rows) {
      return columns == 0 ? 0 : rows * (1 + (columns * bits + 7) / 8);
    };
    const bool interlaced = png_get_interlace_type(png_, info_) != PNG_INTERLACE_NONE;
    if (!interlaced) return size_of(width(), height());
    std::size_t size = 0;
    for (int pass = 0; pass < PNG_INTERLACE_ADAM7_PASSES; ++pass) {
      size += size_of(PNG_PASS_COLS(width(), pass), PNG_PASS_ROWS(height(), pass));
    }
    return size;
  }

  /// All samples, a byte each, row by row.
  [[nodiscard]] std::vector<std::uint8_t> read_samples() {
    std::vector<std::uint8_t> samples(height() * row_size());
    std::vector<png_bytep> rows;
    for (std::size_t y = 0; y < height(); ++y) rows.push_back(samples.data() + y * row_size());
    attempt([&] { png_read_image(png_, rows.data()); });
    return samples;
  }

  /// What comes behind the rows, up to IEND.
  void read_end() {
    attempt([this] { png_read_end(png_, info_); });
  }

 private:
  void set_options() {
    // our own limit has been checked
    png_set_user_limits(png_, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
    png_set_crc_action(png_, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
    png_set_check_for_invalid_index(png_, 0);                         // beyond the palette is black
    png_set_option(png_, PNG_MAXIMUM_INFLATE_WINDOW, PNG_OPTION_ON);  // as Pillow
    // metadata, which may be bombs, are skipped; tRNS is kept as it is, since Pillow uses what
    // libpng would drop
    constexpr std::array<png_byte, 5> kept = {'t', 'R', 'N', 'S', 0};
    png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
    png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_ALWAYS, kept.data(), 1);
  }

  /// Takes a step, of which libpng may jump out: it must own nothing that has a destructor.
  template <typename Step>
  void attempt(Step step) {
    if (setjmp(png_jmpbuf(png_)) == 0) {
      step();
    } else {
      fail();
    }
  }

  [[noreturn]] void fail() {
    if (source_.truncated) throw Error("the PNG file is truncated");
    damaged(source_.reason.data());
  }

  Source source_;
  State state_{&source_};
  png_structp png_ = state_.png;
  png_infop info_ = state_.info;
  unsigned depth_ = 0;
};

// --- colours ---

/// By the value of a single sample.
using Table = std::array<Colour, 256>;

constexpr Colour black{0, 0, 0};

constexpr Colour grey(std::uint8_t sample) { return {sample, sample, sample}; }

void check_transparency(unsigned colour, std::size_t size) {
  const std::size_t expected = colour == PNG_COLOR_TYPE_RGB ? 6 : 2;
  const bool is_key = colour == PNG_COLOR_TYPE_GRAY || colour == PNG_COLOR_TYPE_RGB;
  if (is_key && size < expected) {
    damaged("tRNS has " + std::to_string(size) + " bytes, not " + std::to_string(expected));
  }
}

/// Of 16 bits the upper 8, whatever tRNS says, as Pillow.
Table grey_table(unsigned depth, const std::optional<Bytes>& transparency) {
  Table table{};
  const unsigned largest = depth >= 8 ? 255 : (1U << depth) - 1;
  for (unsigned i = 0; i <= largest; ++i) {
    table[i] = grey(static_cast<std::uint8_t>(i * 255 / largest));
  }
  if (!transparency || depth == 16) return table;
  // Pillow holds the key against the scaled values, except of 1 bit
  const std::uint32_t key = read_u16(*transparency, 0);
  const std::uint32_t value = depth == 1 ? (key != 0 ? 255 : 0) : key & 0xFF;
  std::ranges::replace_if(table, [&](const Colour& c) { return c.red == value; }, black);
  return table;
}

/// Black beyond the palette's end.
Table palette_table(std::span<const png_color> palette, Bytes alphas) {
  Table table{};
  for (std::size_t i = 0; i < palette.size(); ++i) {
    const std::uint8_t alpha = i < alphas.size() ? alphas[i] : std::uint8_t{255};
    const auto shown = [alpha](std::uint8_t sample) { return over_black(sample, alpha); };
    table[i] = {shown(palette[i].red), shown(palette[i].green), shown(palette[i].blue)};
  }
  return table;
}

/// Tells the colours of pixels, over black.
class Colours {
 public:
  explicit Colours(const PngReader& png) {
    const std::optional<Bytes> transparency = png.transparency();
    if (transparency) check_transparency(png.colour(), transparency->size());
    if (png.colour() == PNG_COLOR_TYPE_GRAY) table_ = grey_table(png.depth(), transparency);
    if (png.colour() == PNG_COLOR_TYPE_PALETTE) {
      table_ = palette_table(png.palette(), transparency.value_or(Bytes()));
    }
    if (png.colour() != PNG_COLOR_TYPE_RGB || !transparency) return;
    // of 16 bits, Pillow holds the key's lower 8 against the upper 8 of the samples
    key_ = {(*transparency)[1], (*transparency)[3], (*transparency)[5]};
  }

  /// The colour of one pixel's samples.
  [[nodiscard]] Colour of(Bytes pixel) const {
    if (pixel.size() == 1) return table_[pixel[0]];
    if (pixel.size() == 2) return grey(over_black(pixel[0], pixel[1]));
    if (pixel.size() == 3) {
      const bool transparent = key_ && std::ranges::equal(pixel, *key_);
      return transparent ? black : Colour{pixel[0], pixel[1], pixel[2]};
    }
    const auto shown = [pixel](std::size_t channel) {
      return over_black(pixel[channel], pixel[3]);
    };
    return {shown(0), shown(1), shown(2)};
  }

 private:
  Table table_{};
  std::optional<std::array<std::uint8_t, 3>> key_;
};

/// A chunk's name and content; empty at the end.
struct Chunk {
  Bytes name;
  Bytes content;
};

/// The chunk at `at`, which moves behind it.
Chunk next_chunk(Bytes file, std::size_t& at) {
  if (at + 12 > file.size() || read_u32(file, at) > file.size() - at - 12) return {};
  const Chunk chunk{file.subspan(at + 4, 4), file.subspan(at + 8, read_u32(file, at))};
  at += 12 + chunk.content.size();
  return chunk;
}

/// All chunks up to IEND, or where the file is cut.
std::vector<Chunk> find_chunks(Bytes file) {
  std::vector<Chunk> chunks;
  std::size_t at = png_magic.size();
  for (Chunk chunk = next_chunk(file, at); !chunk.name.empty(); chunk = next_chunk(file, at)) {
    if (starts_with(chunk.name, "IEND")) break;
    chunks.push_back(chunk);
  }
  return chunks;
}

/// The first eXIf chunk, before or behind the samples; empty if there is none.
Bytes find_exif(const std::vector<Chunk>& chunks) {
  const auto is_exif = [](const Chunk& chunk) { return starts_with(chunk.name, "eXIf"); };
  const auto exif = std::ranges::find_if(chunks, is_exif);
  return exif == chunks.end() ? Bytes() : exif->content;
}

/// The compressed samples must end, with their checksum: libpng doesn't always look. More than a
/// little behind them may be a bomb.
void check_end(const std::vector<Chunk>& chunks, std::size_t size) {
  constexpr std::size_t surplus = 1 << 16;
  z_stream stream{};
  if (inflateInit(&stream) != Z_OK) throw std::bad_alloc();
  const std::unique_ptr<z_stream, decltype(&inflateEnd)> owner(&stream, inflateEnd);
  std::vector<Bytef> output(1 << 16);
  int status = Z_OK;
  const auto is_data = [](const Chunk& chunk) { return starts_with(chunk.name, "IDAT"); };
  for (auto chunk = std::ranges::find_if(chunks, is_data);
       chunk != chunks.end() && is_data(*chunk) && (status == Z_OK || status == Z_BUF_ERROR);
       ++chunk) {
    stream.next_in = const_cast<Bytef*>(chunk->content.data());
    stream.avail_in = static_cast<uInt>(chunk->content.size());
    do {
      stream.next_out = output.data();
      stream.avail_out = static_cast<uInt>(output.size());
      status = inflate(&stream, Z_NO_FLUSH);
      if (stream.total_out > size + surplus) damaged("IDAT: too much image data");
    } while (status == Z_OK && (stream.avail_in > 0 || stream.avail_out == 0));
  }
  if (status != Z_STREAM_END) damaged("IDAT: the compressed data have no right end");
}

Image read_image(PngReader& png, Decoding::Mode mode) {
  const Colours colours(png);
  const std::vector<std::uint8_t> samples = png.read_samples();
  Image image = make_image(png.width(), png.height(), mode);
  for (std::size_t at = 0; at < samples.size(); at += png.channels()) {
    append(image, colours.of(Bytes(samples).subspan(at, png.channels())));
  }
  return image;
}

}  // namespace

Image decode_png(Bytes file, const Decoding& decoding) {
  // by the size libpng would allocate rows; it would also read a file that hides it further on
  if (file.size() >= 16 && !starts_with(file.subspan(12), "IHDR")) {
    damaged("it doesn't begin with IHDR");
  }
  if (file.size() < 24) throw Error("the PNG file is truncated");
  const std::vector<Chunk> chunks = find_chunks(file);
  const int orientation = read_orientation(find_exif(chunks));
  check_size({read_u32(file, 16), read_u32(file, 20), orientation}, decoding);
  PngReader png(file);
  Image image = read_image(png, decoding.mode);
  png.read_end();
  check_end(chunks, png.size_in_file());
  return transpose(std::move(image), orientation);
}

}  // namespace nin
