// Feeds IDX files, plain and gzipped, to the readers of images and labels.

#include <cstddef>
#include <cstdint>
#include <span>

#include "nin/error.h"
#include "nin/files.h"

namespace {

template <typename Read>
void attempt(const Read& read, std::span<const std::uint8_t> file) {
  try {
    static_cast<void>(read(file));
  } catch (const nin::Error&) {  // what is wrong with a file must be said in no other way
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span file(data, size);
  static_cast<void>(nin::is_idx(file));
  attempt(nin::decode_idx_images, file);
  attempt(nin::decode_idx_labels, file);
  return 0;
}
