#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "image.h"
#include "nin/decoding.h"

namespace nin {

struct Size {
  std::size_t width;
  std::size_t height;

  bool operator==(const Size&) const = default;
};

/// The size that an upright image is resized to, before it is cropped or padded; of `pad`, an edge
/// may be 0. `size` is at least 1x1 and has edges of at most max_edge.
[[nodiscard]] Size resized_size(const Size& size, const Decoding& decoding);

/// The pixels of an upright image in the decoding's size, as Pillow and torchvision make them.
/// check_size has seen that it is neither too large nor vanishes.
[[nodiscard]] std::vector<std::uint8_t> fit(Image image, const Decoding& decoding);

}  // namespace nin
