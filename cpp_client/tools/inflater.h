#pragma once

#include <zlib.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "bytes.h"

namespace nin::tool {

/// Decompresses a gzip stream, no further than it is asked to: what a small file expands
/// to is bounded by its reader. Neither copyable nor movable, as zlib's state isn't.
class Inflater {
 public:
  Inflater();
  ~Inflater();
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;

  /// What comes next; it must outlive the reading of it. The input before must be used up.
  void feed(Bytes input) { input_ = input; }

  /// Fills `output` as far as the input goes, and returns how many bytes that were; fewer than
  /// asked for where the input is used up or the stream has ended.
  /// Throws Error with zlib's reason where the stream is damaged.
  [[nodiscard]] std::size_t read(std::span<std::uint8_t> output);

  /// Whether the stream's end has been read; what is left of the input then comes behind it.
  [[nodiscard]] bool ended() const { return ended_; }
  [[nodiscard]] Bytes rest() const { return input_; }

  /// Begins another stream.
  void restart(Bytes input);

 private:
  z_stream stream_{};
  Bytes input_;
  bool ended_ = false;
};

}  // namespace nin::tool
