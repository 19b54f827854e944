#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "nin/predictor.h"

namespace nin::tool {

/// Whether bytes are an IDX file, or gzip, in which no image comes here.
[[nodiscard]] bool is_idx(std::span<const std::uint8_t> file);

/// Gives the next part of a file's bytes, which need to last until the next call; none at its end.
/// The first part of a file has two bytes or more: they tell whether it is gzipped.
using NextPart = std::function<std::span<const std::uint8_t>()>;

/// What an IDX file holds, plain or gzipped; one of the two is empty, by the model's input.
struct Items {
  std::vector<std::uint8_t> pixels;
  std::vector<float> images;
};

/// Reads the items that a model takes: unsigned bytes or floats, of its shape.
/// Throws Error where the file isn't one of those, its size isn't what its header promises, or that
/// is more than 2 GiB. Of a file in parts, no more is asked for than is needed to see that.
[[nodiscard]] Items decode_idx(std::span<const std::uint8_t> file, const Input& input);
[[nodiscard]] Items decode_idx(const NextPart& next, const Input& input);

/// Reads (N) labels, unsigned bytes or 32-bit numbers. Throws Error as decode_idx does.
[[nodiscard]] std::vector<std::uint32_t> decode_idx_labels(std::span<const std::uint8_t> file);
[[nodiscard]] std::vector<std::uint32_t> decode_idx_labels(const NextPart& next);

}  // namespace nin::tool
