#pragma once

#include "bytes.h"
#include "grey_image.h"

namespace nin {

/// The orientation, 1 to 8, that EXIF metadata (a TIFF header with directories) gives an image;
/// 1, upright, where it gives none or is damaged: no image is refused for its metadata.
[[nodiscard]] int read_orientation(Bytes exif);

/// Turns or mirrors an image upright, as PIL.ImageOps.exif_transpose does.
[[nodiscard]] GreyImage transpose(GreyImage image, int orientation);

}  // namespace nin
