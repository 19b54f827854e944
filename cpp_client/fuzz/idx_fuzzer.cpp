// Feeds IDX files, plain and gzipped, to the readers of images and labels.

#include <cstddef>
#include <cstdint>
#include <span>

#include "idx.h"
#include "nin/error.h"

namespace {

template <typename Read>
void attempt(const Read& read) {
  try {
    static_cast<void>(read());
  } catch (const nin::Error&) {  // what is wrong with a file must be said in no other way
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using nin::ElementType;
  const std::span file(data, size);
  static_cast<void>(nin::tool::is_idx(file));
  attempt([&] { return nin::tool::decode_idx(file, {"grey", ElementType::uint8, {28, 28}}); });
  attempt([&] { return nin::tool::decode_idx(file, {"rgb", ElementType::uint8, {4, 5, 3}}); });
  attempt([&] { return nin::tool::decode_idx(file, {"image", ElementType::float32, {1, 8, 8}}); });
  attempt([&] { return nin::tool::decode_idx_labels(file); });
  return 0;
}
