#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <string>
#include <utility>

#include "bytes.h"
#include "inflater.h"
#include "nin/error.h"
#include "nin/files.h"

namespace nin {
namespace {

bool is_gzip(Bytes file) { return file.size() >= 2 && file[0] == 0x1F && file[1] == 0x8B; }

/// A file's content, plain or decompressed, piece by piece.
class Source {
 public:
  explicit Source(const NextPart& next) : next_(next), rest_(next()), zipped_(is_gzip(rest_)) {
    if (zipped_) inflater_.feed(rest_);
  }

  /// Appends at most `count` bytes; fewer where the content ends. Memory grows with what is
  /// there, never with what a header promises.
  void append(std::vector<std::uint8_t>& content, std::uint64_t count) {
    constexpr std::uint64_t step = 1 << 20;
    while (count > 0) {
      const auto asked = static_cast<std::size_t>(std::min(count, step));
      const std::size_t size = content.size();
      content.resize(size + asked);
      const std::size_t got = read(std::span(content).subspan(size));
      content.resize(size + got);
      if (got == 0) return;
      count -= got;
    }
  }

 private:
  std::size_t read(std::span<std::uint8_t> output) {
    if (zipped_) return inflate(output);
    if (rest_.empty()) rest_ = next_();
    const Bytes taken = rest_.first(std::min(output.size(), rest_.size()));
    rest_ = rest_.subspan(taken.size());
    std::ranges::copy(taken, output.begin());
    return taken.size();
  }

  /// As Python's gzip: members may follow one another, and zeros may follow each.
  std::size_t inflate(std::span<std::uint8_t> output) try {
    while (true) {
      const std::size_t got = inflater_.read(output);
      if (got > 0) return got;
      if (inflater_.ended()) {
        const Bytes member = next_member();
        if (member.empty()) return 0;
        inflater_.restart(member);
      } else {
        const Bytes part = next_();
        if (part.empty()) throw Error("it ends before the end of the compressed data");
        inflater_.feed(part);
      }
    }
  } catch (const Error& error) {
    throw Error(std::string("can't decompress: ") + error.what());
  }

  /// What comes behind a member and its zeros; empty at the end of the file.
  Bytes next_member() {
    Bytes rest = inflater_.rest();
    do {
      const auto start = std::ranges::find_if(rest, [](std::uint8_t byte) { return byte != 0; });
      if (start != rest.end()) return rest.subspan(static_cast<std::size_t>(start - rest.begin()));
      rest = next_();
    } while (!rest.empty());
    return {};
  }

  const NextPart& next_;
  Bytes rest_;
  bool zipped_;
  Inflater inflater_;
};

/// A kind of IDX file: its magic number, and what comes after it and the count.
struct Kind {
  std::uint32_t magic;
  std::span<const std::uint32_t> shape;  ///< of one item
  std::uint64_t item_size;               ///< in bytes
  const char* items;
};

/// A small gzip file expands to as much as its header promises: enough for 10,000 float images.
constexpr std::uint64_t most_bytes = std::uint64_t{2} << 30;

// constants for the compiler: an application's global objects may decode before ours are made
constexpr std::array<std::uint32_t, 2> pixels_shape{image_side, image_side};
constexpr std::array<std::uint32_t, 3> floats_shape{1, network_side, network_side};
constexpr Kind labels_kind{0x0801, {}, 1, "labels"};
constexpr Kind pixels_kind{0x0803, pixels_shape, image_pixels, "images"};
constexpr Kind floats_kind{0x0D04, floats_shape, network_pixels * sizeof(float), "images"};

std::string to_text(const Kind& kind) {
  std::string text = "[" + std::to_string(kind.magic) + ", count";
  for (const std::uint32_t size : kind.shape) text += ", " + std::to_string(size);
  return text + "]";
}

std::string to_text(Bytes header) {
  std::string text;
  for (std::size_t at = 0; at < header.size(); at += 4) {
    text += (at == 0 ? "[" : ", ") + std::to_string(read_u32(header, at));
  }
  return text + "]";
}

/// Reads the numbers of a header; zeros where the content ends before.
std::vector<std::uint8_t> read_header(Source& source, const Kind& kind) {
  const std::size_t size = 4 * (2 + kind.shape.size());
  std::vector<std::uint8_t> header;
  source.append(header, size);
  header.resize(size);
  return header;
}

bool matches(Bytes header, const Kind& kind) {
  bool same = read_u32(header, 0) == kind.magic;
  for (std::size_t i = 0; i < kind.shape.size(); ++i) {
    same = same && read_u32(header, 8 + 4 * i) == kind.shape[i];
  }
  return same;
}

/// Reads what follows the header, which must be as long as that promises.
std::vector<std::uint8_t> read_items(Source& source, Bytes header, const Kind& kind) {
  const std::uint64_t count = read_u32(header, 4);
  const std::uint64_t promised = count * kind.item_size;
  if (promised > most_bytes) {
    throw Error("promises " + std::to_string(count) + " " + kind.items + ", more than 2 GiB");
  }
  std::vector<std::uint8_t> items;
  source.append(items, promised + 1);
  if (items.size() == promised) return items;
  const std::uint64_t found = header.size() + items.size();
  throw Error("promises " + std::to_string(count) + " " + kind.items + ", " +
              std::to_string(header.size() + promised) + " bytes; it has " +
              (items.size() > promised ? "more" : std::to_string(found) + " bytes"));
}

float read_float(Bytes bytes, std::size_t index) {
  const float value = std::bit_cast<float>(read_u32(bytes, index * sizeof(float)));
  if (std::isfinite(value)) return value;
  throw Error("image " + std::to_string(index / network_pixels) + " holds " +
              std::to_string(value) + ", expected finite numbers");
}

NextPart in_one_part(Bytes file) {
  return [rest = file]() mutable { return std::exchange(rest, {}); };
}

std::vector<float> to_floats(Bytes bytes) {
  std::vector<float> floats;
  floats.reserve(bytes.size() / sizeof(float));
  for (std::size_t i = 0; i < bytes.size() / sizeof(float); ++i) {
    floats.push_back(read_float(bytes, i));
  }
  return floats;
}

}  // namespace

bool is_idx(std::span<const std::uint8_t> file) {
  // the types that IDX knows: bytes of both kinds, short, int, float, double
  constexpr std::array<std::uint8_t, 6> types = {0x08, 0x09, 0x0B, 0x0C, 0x0D, 0x0E};
  if (is_gzip(file)) return true;
  return file.size() >= 4 && file[0] == 0 && file[1] == 0 &&
         std::ranges::find(types, file[2]) != types.end();
}

IdxImages decode_idx_images(const NextPart& next) {
  Source source(next);
  std::vector<std::uint8_t> header = read_header(source, pixels_kind);
  if (matches(header, pixels_kind)) return {read_items(source, header, pixels_kind), {}};
  const bool floats = read_u32(header, 0) == floats_kind.magic;
  const Kind& expected = floats ? floats_kind : pixels_kind;
  if (floats) {
    source.append(header, 4);  // it has one dimension more
    header.resize(20);
  }
  if (!matches(header, expected)) {
    const std::string content = floats ? "1x224x224 floats" : "28x28 images";
    throw Error("not an IDX file of " + content + ": its header is " + to_text(header) +
                ", expected " + to_text(expected));
  }
  return {{}, to_floats(read_items(source, header, floats_kind))};
}

IdxImages decode_idx_images(std::span<const std::uint8_t> file) {
  return decode_idx_images(in_one_part(file));
}

std::vector<std::uint8_t> decode_idx_labels(std::span<const std::uint8_t> file) {
  return decode_idx_labels(in_one_part(file));
}

std::vector<std::uint8_t> decode_idx_labels(const NextPart& next) {
  Source source(next);
  const std::vector<std::uint8_t> header = read_header(source, labels_kind);
  if (!matches(header, labels_kind)) {
    throw Error("not an IDX file of labels: its header is " + to_text(header) + ", expected " +
                to_text(labels_kind));
  }
  return read_items(source, header, labels_kind);
}

}  // namespace nin
