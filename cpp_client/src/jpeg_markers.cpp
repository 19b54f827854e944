#include "jpeg_markers.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>

#include "nin/error.h"

namespace nin {
namespace {

constexpr std::uint8_t start_of_frame = 0xC0, progressive_frame = 0xC2;
constexpr std::uint8_t huffman_tables = 0xC4, quantization_tables = 0xDB, app1 = 0xE1;
constexpr std::uint8_t start_of_scan = 0xDA, end_of_image = 0xD9;
constexpr std::size_t max_scans = 500;  // a real file has 1 to 20; each takes a pass over the image
constexpr std::string_view exif_prefix{"Exif\0\0", 6};

[[noreturn]] void damaged(const std::string& how) {
  throw Error("the JPEG file is damaged: " + how);
}

[[noreturn]] void truncated() { throw Error("the JPEG file is truncated: no end-of-image marker"); }

/// Where the next marker's code lies, after its FF. In entropy-coded data, FF 00 is the byte FF,
/// and D0 to D7 only mark where a decoder may resume.
std::size_t find_marker(Bytes file, std::size_t from) {
  for (std::size_t at = from; at + 1 < file.size(); ++at) {
    const std::uint8_t code = file[at + 1];
    const bool is_data = code == 0x00 || code == 0x01 || (code >= 0xD0 && code <= 0xD7);
    if (file[at] == 0xFF && code != 0xFF && !is_data) return at + 1;
  }
  truncated();
}

/// The content of a marker's segment.
Bytes read_segment(Bytes file, std::size_t marker) {
  if (marker + 3 > file.size()) truncated();
  const std::size_t length = read_u16(file, marker + 1);
  if (length < 2) damaged("a segment of " + std::to_string(length) + " bytes");
  if (length > file.size() - marker - 1) truncated();
  return file.subspan(marker + 3, length - 2);
}

/// What has been read so far.
class Walk {
 public:
  void visit(std::uint8_t marker, Bytes segment) {
    if (marker >= start_of_frame && marker <= progressive_frame) read_frame(marker, segment);
    if (marker == quantization_tables) read_quantization(segment);
    if (marker == huffman_tables) read_huffman(segment);
    if (marker == app1 && scans_ == 0) read_app1(segment);
    if (marker == start_of_scan) read_scan(segment);
  }

  [[nodiscard]] std::vector<std::uint8_t> take_exif() {
    if (scans_ == 0) damaged("it has no image data");
    return std::move(exif_);
  }

 private:
  void read_frame(std::uint8_t marker, Bytes segment) {
    progressive_ = marker == progressive_frame;
    for (std::size_t at = 8; at < segment.size(); at += 3) frame_tables_.push_back(segment[at]);
  }

  void read_quantization(Bytes segment) {
    while (!segment.empty()) {
      mark(quantization_, segment[0] & 15);
      segment = segment.subspan(std::min<std::size_t>(segment.size(), segment[0] > 15 ? 129 : 65));
    }
  }

  void read_huffman(Bytes segment) {
    constexpr std::size_t before = 1 + 16;  // a table's number, and its counts of codes by length
    while (!segment.empty()) {
      if (segment.size() < before) damaged("a Huffman table is cut short");
      const Bytes counts = segment.subspan(1, before - 1);
      const auto codes = std::accumulate(counts.begin(), counts.end(), std::size_t{0});
      if (codes > 256) damaged("a Huffman table of " + std::to_string(codes) + " codes");
      mark(segment[0] > 15 ? ac_ : dc_, segment[0] & 15);
      segment = segment.subspan(std::min(segment.size(), before + codes));
    }
  }

  void read_app1(Bytes segment) {
    const Bytes prefix = segment.first(std::min(segment.size(), exif_prefix.size()));
    if (!std::ranges::equal(prefix, exif_prefix)) return;
    exif_.insert(exif_.end(), segment.begin() + exif_prefix.size(), segment.end());
  }

  void read_scan(Bytes segment) {
    if (++scans_ > max_scans) {
      throw Error("the JPEG file has more than " + std::to_string(max_scans) + " scans");
    }
    const std::size_t components = segment.empty() ? 0 : segment[0];
    if (segment.size() != 4 + 2 * components) damaged("a scan's header has another length");
    const bool first_dc = segment[1 + 2 * components] == 0;
    const bool refines = segment[3 + 2 * components] > 15;
    for (std::size_t i = 0; i < components; ++i) {
      const unsigned tables = segment[2 + 2 * i];
      if (!progressive_ || (first_dc && !refines)) require(dc_, tables >> 4);
      if (!progressive_ || !first_dc) require(ac_, tables & 15);
    }
    for (const std::uint8_t table : frame_tables_) require(quantization_, table);
  }

  using Seen = std::array<bool, 4>;

  static void mark(Seen& seen, unsigned table) {
    if (table >= seen.size()) damaged("table " + std::to_string(table) + " of 4");
    seen[table] = true;
  }

  static void require(const Seen& seen, unsigned table) {
    if (table >= seen.size() || !seen[table]) {
      damaged("a scan needs table " + std::to_string(table) + ", which isn't there");
    }
  }

  Seen dc_{}, ac_{}, quantization_{};
  std::vector<std::uint8_t> frame_tables_;
  std::vector<std::uint8_t> exif_;
  bool progressive_ = false;
  std::size_t scans_ = 0;
};

}  // namespace

std::vector<std::uint8_t> walk_jpeg(Bytes file) {
  Walk walk;
  std::size_t marker = find_marker(file, 2);
  while (file[marker] != end_of_image) {
    const Bytes segment = read_segment(file, marker);
    walk.visit(file[marker], segment);
    marker = find_marker(file, marker + 3 + segment.size());
  }
  return walk.take_exif();
}

}  // namespace nin
