#include "png_file.h"

#include <png.h>

#include <algorithm>
#include <array>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
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
  bool damaged = false;  ///< where libpng only warns
  std::array<char, 128> reason{};
};

[[noreturn]] void keep_reason(png_structp png, png_const_charp message) {
  auto* source = static_cast<Source*>(png_get_error_ptr(png));
  std::snprintf(source->reason.data(), source->reason.size(), "%s", message);
  png_longjmp(png, 1);
}

/// Behind the samples, libpng only warns of what is wrong with their compression.
void keep_warning(png_structp png, png_const_charp message) {
  const std::string_view text = message;
  auto* source = static_cast<Source*>(png_get_error_ptr(png));
  if (source->damaged || !text.starts_with("IDAT: ")) return;
  if (text.ends_with("Too much image data") || text.ends_with("Extra compressed data")) return;
  source->damaged = true;
  std::snprintf(source->reason.data(), source->reason.size(), "%s", message);
}

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
      : png(png_create_read_struct(PNG_LIBPNG_VER_STRING, source, keep_reason, keep_warning)),
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
    if (source_.damaged) fail();
  }

 private:
  void set_options() {
    // our own limit has been checked
    png_set_user_limits(png_, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
    png_set_crc_action(png_, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
    png_set_check_for_invalid_index(png_, 0);  // beyond the palette is black
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

/// The first eXIf chunk, before or behind the samples; empty if there is none.
Bytes find_exif(Bytes file) {
  std::size_t at = png_magic.size();
  while (at + 12 <= file.size() && !starts_with(file.subspan(at + 4), "IEND")) {
    const std::size_t length = read_u32(file, at);
    if (length > file.size() - at - 12) break;
    if (starts_with(file.subspan(at + 4), "eXIf")) return file.subspan(at + 8, length);
    at += 12 + length;
  }
  return {};
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
  const int orientation = read_orientation(find_exif(file));
  check_size({read_u32(file, 16), read_u32(file, 20), orientation}, decoding);
  PngReader png(file);
  Image image = read_image(png, decoding.mode);
  png.read_end();
  return transpose(std::move(image), orientation);
}

}  // namespace nin
