#pragma once

#include <cstdint>
#include <vector>

#include "grey_image.h"

namespace nin {

/// The pixels of an image fitted into 28x28, as PIL.ImageOps.pad does by bicubic resampling: the
/// longer edge to 28, the shorter one in proportion, centred on black. 28x28 stays as it is.
/// check_size has seen that the shorter edge doesn't vanish.
[[nodiscard]] std::vector<std::uint8_t> fit(const GreyImage& image);

}  // namespace nin
