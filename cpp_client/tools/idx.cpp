#include "idx.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <string>
#include <utility>

#include "bytes.h"
#include "inflater.h"
#include "nin/error.h"

namespace nin::tool {
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

constexpr std::uint32_t byte_type = 0x08, int_type = 0x0C, float_type = 0x0D;

/// A small gzip file expands to as much as its header promises: enough for 10,000 float images.
constexpr std::uint64_t most_bytes = std::uint64_t{2} << 30;

/// What an IDX file has to hold: the type and the shape of an item.
struct Kind {
  std::uint32_t type;
  std::vector<std::size_t> shape;
  const char* items;

  [[nodiscard]] std::uint32_t magic() const {
    return type << 8 | static_cast<std::uint32_t>(1 + shape.size());
  }
  [[nodiscard]] std::uint64_t item_bytes() const {
    std::uint64_t bytes = type == byte_type ? 1 : 4;
    for (const std::size_t size : shape) bytes *= size;
    return bytes;
  }
};

std::string to_text(const Kind& kind) {
  std::string text = "[" + std::to_string(kind.magic()) + ", count";
  for (const std::size_t size : kind.shape) text += ", " + std::to_string(size);
  return text + "]";
}

std::string to_text(Bytes header) {
  std::string text;
  for (std::size_t at = 0; at < header.size(); at += 4) {
    text += (at == 0 ? "[" : ", ") + std::to_string(read_u32(header, at));
  }
  return text + "]";
}

/// Appends so many numbers of a header; zeros where the content ends before.
void append_numbers(Source& source, std::vector<std::uint8_t>& header, std::size_t count) {
  const std::size_t size = header.size() + 4 * count;
  source.append(header, 4 * count);
  header.resize(size);
}

/// The magic number, and as many sizes as it says, if it is one.
std::vector<std::uint8_t> read_header(Source& source) {
  constexpr std::uint32_t most_sizes = 8;
  std::vector<std::uint8_t> header;
  append_numbers(source, header, 1);
  const std::uint32_t magic = read_u32(header, 0);
  const std::uint32_t sizes = magic & 0xFF;
  append_numbers(source, header, magic < 0x10000 && sizes <= most_sizes ? sizes : 1);
  return header;
}

bool matches(Bytes header, const Kind& kind) {
  if (read_u32(header, 0) != kind.magic()) return false;
  for (std::size_t i = 0; i < kind.shape.size(); ++i) {
    if (read_u32(header, 8 + 4 * i) != kind.shape[i]) return false;
  }
  return true;
}

/// Reads what follows the header, which must be as long as that promises.
std::vector<std::uint8_t> read_items(Source& source, Bytes header, const Kind& kind) {
  const std::uint64_t count = read_u32(header, 4);
  if (count > most_bytes / kind.item_bytes()) {
    throw Error("promises " + std::to_string(count) + " " + kind.items + ", more than 2 GiB");
  }
  const std::uint64_t promised = count * kind.item_bytes();
  std::vector<std::uint8_t> items;
  source.append(items, promised + 1);
  if (items.size() == promised) return items;
  const std::uint64_t found = header.size() + items.size();
  throw Error("promises " + std::to_string(count) + " " + kind.items + ", " +
              std::to_string(header.size() + promised) + " bytes; it has " +
              (items.size() > promised ? "more" : std::to_string(found) + " bytes"));
}

NextPart in_one_part(Bytes file) {
  return [rest = file]() mutable { return std::exchange(rest, {}); };
}

std::vector<float> to_floats(Bytes bytes, std::size_t item_size) {
  std::vector<float> floats;
  floats.reserve(bytes.size() / sizeof(float));
  for (std::size_t at = 0; at < bytes.size(); at += sizeof(float)) {
    floats.push_back(std::bit_cast<float>(read_u32(bytes, at)));
    if (!std::isfinite(floats.back())) {
      throw Error("image " + std::to_string((floats.size() - 1) / item_size) + " holds " +
                  std::to_string(floats.back()) + ", expected finite numbers");
    }
  }
  return floats;
}

std::string description(const Kind& kind) {
  std::string text;
  for (const std::size_t size : kind.shape)
    text += (text.empty() ? "" : "x") + std::to_string(size);
  return text + (kind.type == byte_type ? " unsigned bytes" : " floats");
}

}  // namespace

bool is_idx(std::span<const std::uint8_t> file) {
  // the types that IDX knows: bytes of both kinds, short, int, float, double
  constexpr std::array<std::uint8_t, 6> types = {0x08, 0x09, 0x0B, 0x0C, 0x0D, 0x0E};
  if (is_gzip(file)) return true;
  return file.size() >= 4 && file[0] == 0 && file[1] == 0 &&
         std::ranges::find(types, file[2]) != types.end();
}

Items decode_idx(const NextPart& next, const Input& input) {
  const bool bytes = input.type == ElementType::uint8;
  const Kind kind{bytes ? byte_type : float_type, input.shape, "images"};
  Source source(next);
  const std::vector<std::uint8_t> header = read_header(source);
  if (!matches(header, kind)) {
    throw Error("not an IDX file of " + description(kind) +
                ", which the model takes: its header is " + to_text(header) + ", expected " +
                to_text(kind));
  }
  std::vector<std::uint8_t> items = read_items(source, header, kind);
  if (bytes) return {std::move(items), {}};
  return {{}, to_floats(items, input.item_size())};
}

Items decode_idx(std::span<const std::uint8_t> file, const Input& input) {
  return decode_idx(in_one_part(file), input);
}

std::vector<std::uint32_t> decode_idx_labels(std::span<const std::uint8_t> file) {
  return decode_idx_labels(in_one_part(file));
}

std::vector<std::uint32_t> decode_idx_labels(const NextPart& next) {
  const Kind bytes{byte_type, {}, "labels"}, numbers{int_type, {}, "labels"};
  Source source(next);
  const std::vector<std::uint8_t> header = read_header(source);
  const bool wide = matches(header, numbers);
  if (!wide && !matches(header, bytes)) {
    throw Error("not an IDX file of labels: its header is " + to_text(header) + ", expected " +
                to_text(bytes) + " or " + to_text(numbers));
  }
  const std::vector<std::uint8_t> items = read_items(source, header, wide ? numbers : bytes);
  if (!wide) return {items.begin(), items.end()};
  std::vector<std::uint32_t> labels;
  for (std::size_t at = 0; at < items.size(); at += 4) labels.push_back(read_u32(items, at));
  return labels;
}

}  // namespace nin::tool
