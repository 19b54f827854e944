#pragma once

#include <cstdint>
#include <vector>

#include "bytes.h"

namespace nin {

struct JpegParts {
  std::vector<std::uint8_t> file;  ///< without its metadata, and without what libjpeg would skip
  Bytes exif;                      ///< of the first Exif segment; empty if there is none
};

/// Splits a JPEG file by the same rules as Python's decoder. `behind` is put at the end of all that
/// is coded: where the data are whole, nothing depends on it. Throws Error where the file ends
/// early, lacks scans or restart markers, or is of a kind that isn't decoded.
[[nodiscard]] JpegParts split_jpeg(Bytes file, Bytes behind = {});

}  // namespace nin
