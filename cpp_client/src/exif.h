#pragma once

#include "bytes.h"
#include "image.h"

namespace nin {

/// The orientation, 1 to 8, that Exif metadata (a TIFF header with directories) give an image by
/// the first tag of that name; 1, upright, where they give none or are damaged: no image is refused
/// for its metadata.
[[nodiscard]] int read_orientation(Bytes exif);

/// Turns or mirrors an image of this orientation upright.
[[nodiscard]] Image transpose(Image image, int orientation);

}  // namespace nin
