// Feeds an export's texts to their parser: the input, cut at its zero bytes.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "metadata.h"
#include "nin/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  std::map<std::string, std::string> texts;
  for (const char* key : nin::metadata_keys) {
    const std::size_t length = std::min(rest.find('\0'), rest.size());
    texts[key] = rest.substr(0, length);
    rest.remove_prefix(std::min(length + 1, rest.size()));
  }
  try {
    static_cast<void>(nin::parse_metadata(texts));
  } catch (const nin::Error&) {  // what is wrong with an export must be said in no other way
  }
  return 0;
}
