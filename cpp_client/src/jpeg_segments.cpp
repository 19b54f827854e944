#include "jpeg_segments.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "nin/error.h"

namespace nin {
namespace {

constexpr std::uint8_t huffman_tables = 0xC4, end_of_image = 0xD9, start_of_scan = 0xDA;
constexpr std::uint8_t quantization = 0xDB, restart_interval = 0xDD;
constexpr std::uint8_t app0 = 0xE0, app1 = 0xE1, app14 = 0xEE, app15 = 0xEF, comment = 0xFE;
constexpr std::uint8_t baseline = 0xC0, progressive = 0xC2;  // extended between them
constexpr std::size_t max_scans = 500;                       // as TurboJPEG's: each one takes time

[[noreturn]] void damaged(const std::string& how) {
  throw Error("the JPEG file is damaged: " + how);
}

[[noreturn]] void truncated() { throw Error("the JPEG file is truncated"); }

bool is_restart(std::uint8_t marker) { return marker >= 0xD0 && marker <= 0xD7; }

std::size_t divide_up(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

/// A marker and what belongs to it.
struct Segment {
  std::uint8_t marker;
  Bytes content;
};

/// Reads a file's segments and scans one after the other.
class Reader {
 public:
  explicit Reader(Bytes file) : rest_(file) {}

  [[nodiscard]] Segment segment() {
    if (byte(0) != 0xFF) damaged("there is no marker where one is due");
    while (byte(1) == 0xFF) rest_ = rest_.subspan(1);  // more of them may fill up
    const std::uint8_t marker = byte(1);
    if (marker == end_of_image) return {marker, {}};
    byte(3);
    // libjpeg forgives less than the length's own two bytes
    const std::size_t size = std::max(read_u16(rest_, 2), 2U);
    if (size > rest_.size() - 2) truncated();
    const Segment segment{marker, rest_.subspan(4, size - 2)};
    rest_ = rest_.subspan(2 + size);
    return segment;
  }

  /// Appends what is coded, without bytes that only fill up; returns the restart markers in it.
  [[nodiscard]] std::vector<std::uint8_t> scan(Bytes behind, std::vector<std::uint8_t>& output) {
    std::vector<std::uint8_t> restarts;
    while (byte(0) != 0xFF || byte(1) == 0 || byte(1) == 0xFF || is_restart(byte(1))) {
      const bool marker = byte(0) == 0xFF && is_restart(byte(1));
      if (marker) {
        restarts.push_back(byte(1));
        output.insert(output.end(), behind.begin(), behind.end());
      }
      if (byte(0) != 0xFF || byte(1) != 0xFF) output.push_back(byte(0));
      rest_ = rest_.subspan(1);
    }
    output.insert(output.end(), behind.begin(), behind.end());
    return restarts;
  }

 private:
  std::uint8_t byte(std::size_t at) const {
    if (at >= rest_.size()) truncated();
    return rest_[at];
  }

  Bytes rest_;
};

/// What a file's frame declares, and what its scans have brought of it.
class Frame {
 public:
  Frame(Bytes content, bool is_progressive) : progressive_(is_progressive) {
    if (content.size() < 9 || content.size() != 6U + 3U * content[5]) damaged("its frame is wrong");
    height_ = read_u16(content, 1);
    width_ = read_u16(content, 3);
    for (std::size_t at = 6; at < content.size(); at += 3) {
      const std::size_t factors = content[at + 1];
      Component component{factors >> 4, factors & 15, {}};
      component.bits.fill(unknown);
      across_ = std::max(across_, component.across);
      down_ = std::max(down_, component.down);
      if (!components_.emplace(content[at], component).second) damaged("its frame is wrong");
    }
    if (across_ == 0 || down_ == 0) damaged("its frame is wrong");
  }

  /// Adds a scan by its header; returns how many units between restarts it has to have.
  [[nodiscard]] std::size_t add(Bytes scan) {
    if (scan.size() < 6 || scan.size() != 4U + 2U * scan[0]) damaged("a scan's header is wrong");
    const Bytes range = scan.last(3);
    const std::size_t first = progressive_ ? range[0] : 0, last = progressive_ ? range[1] : 63;
    const unsigned bits = progressive_ ? range[2] : 0;
    if (last > 63) damaged("a scan's header is wrong");
    for (std::size_t at = 1; at + 3 < scan.size(); at += 2) {
      const auto component = components_.find(scan[at]);
      if (component == components_.end()) damaged("a scan's header is wrong");
      for (std::size_t i = first; i <= last; ++i) {
        unsigned& known = component->second.bits[i];
        const bool again = known != unknown && bits == 0;
        if (again || bits >> 4 != (known == unknown ? 0 : known)) damaged("scans are missing");
        known = bits & 15;
      }
    }
    return units(scan);
  }

  [[nodiscard]] bool is_whole() const {
    return std::ranges::all_of(components_, [](const auto& component) {
      return std::ranges::all_of(component.second.bits, [](unsigned bit) { return bit == 0; });
    });
  }

 private:
  static constexpr unsigned unknown = 16;

  struct Component {
    std::size_t across;
    std::size_t down;
    std::array<unsigned, 64> bits;  // of each coefficient the lowest that is known
  };

  [[nodiscard]] std::size_t units(Bytes scan) const {
    const Component& only = components_.at(scan[1]);
    const std::size_t across = scan[0] == 1 ? only.across : 1, down = scan[0] == 1 ? only.down : 1;
    return divide_up(width_ * across, 8 * across_) * divide_up(height_ * down, 8 * down_);
  }

  bool progressive_;
  std::size_t width_ = 0, height_ = 0;
  std::size_t across_ = 0, down_ = 0;
  std::map<std::uint8_t, Component> components_;
};

void check_restarts(Bytes found, std::size_t units, std::size_t interval) {
  const std::size_t expected = interval == 0 || units == 0 ? 0 : (units - 1) / interval;
  if (found.size() != expected) damaged("restart markers are missing");
  for (std::size_t i = 0; i < expected; ++i) {
    if (found[i] != 0xD0 + i % 8) damaged("restart markers are missing");
  }
}

bool is_metadata(const Segment& segment) {
  const auto [marker, content] = segment;
  const bool application = marker >= app0 && marker <= app15;
  const bool jfif =
      marker == app0 && content.size() >= 14 && starts_with(content, std::string_view("JFIF\0", 5));
  const bool adobe = marker == app14 && content.size() >= 12 && starts_with(content, "Adobe");
  return (application || marker == comment) && !jfif && !adobe;
}

void append_segment(std::vector<std::uint8_t>& output, const Segment& segment) {
  const std::size_t size = segment.content.size() + 2;
  output.insert(output.end(), {0xFF, segment.marker, static_cast<std::uint8_t>(size >> 8),
                               static_cast<std::uint8_t>(size)});
  output.insert(output.end(), segment.content.begin(), segment.content.end());
}

/// Takes a file's segments in order.
class Splitter {
 public:
  Splitter(Bytes file, Bytes behind) : reader_(file.subspan(2)), behind_(behind) {
    parts_.file = {0xFF, 0xD8};
  }

  [[nodiscard]] JpegParts split() {
    Segment segment = reader_.segment();
    for (; segment.marker != end_of_image; segment = reader_.segment()) take(segment);
    if (!frame_ || !frame_->is_whole()) damaged("scans are missing");
    parts_.file.insert(parts_.file.end(), {0xFF, end_of_image});
    return std::move(parts_);
  }

 private:
  void take(const Segment& segment) {
    const auto [marker, content] = segment;
    constexpr std::string_view prefix{"Exif\0\0", 6};
    const bool exif = marker == app1 && starts_with(content, prefix);
    if (exif && scans_ == 0 && parts_.exif.data() == nullptr) {
      parts_.exif = content.subspan(prefix.size());
    }
    if (is_metadata(segment)) return;
    append_segment(parts_.file, segment);
    if (marker >= baseline && marker <= progressive && !frame_) {
      frame_.emplace(content, marker == progressive);
    } else if (marker == restart_interval && content.size() == 2) {
      interval_ = read_u16(content, 0);
    } else if (marker == start_of_scan && frame_ && scans_ < max_scans) {
      ++scans_;
      const std::size_t units = frame_->add(content);
      check_restarts(reader_.scan(behind_, parts_.file), units, interval_);
    } else if (marker != huffman_tables && marker != quantization && !is_app(marker)) {
      damaged("its kind isn't decoded, or its parts are in no order");
    }
  }

  static bool is_app(std::uint8_t marker) { return marker == app0 || marker == app14; }

  Reader reader_;
  Bytes behind_;
  JpegParts parts_;
  std::optional<Frame> frame_;
  std::size_t interval_ = 0;
  std::size_t scans_ = 0;
};

}  // namespace

JpegParts split_jpeg(Bytes file, Bytes behind) { return Splitter(file, behind).split(); }

}  // namespace nin
