// Writes the pixels of each image file named to stdout, for comparison with Python's:
// dump_pixels MODE RESIZE HEIGHT WIDTH SHORTER_SIDE FILTER FILE...

#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "metadata.h"
#include "nin/decoding.h"
#include "nin/error.h"

int main(int argc, char** argv) {
  constexpr int first_file = 7;
  if (argc < first_file) return 1;
  const auto number = [&](int i) { return std::stoul(argv[i]); };
  nin::Input input{"pixels", nin::ElementType::uint8, {number(3), number(4)}};
  if (std::string(argv[1]) == "rgb") input.shape.push_back(3);
  const nin::Decoding decoding = nin::parse_decoding({{"mode", argv[1]},
                                                      {"resize", argv[2]},
                                                      {"height", number(3)},
                                                      {"width", number(4)},
                                                      {"shorter_side", number(5)},
                                                      {"filter", argv[6]}},
                                                     input);
  for (int i = first_file; i < argc; ++i) {
    std::ifstream stream(argv[i], std::ios::binary);
    const std::vector<std::uint8_t> file{std::istreambuf_iterator<char>(stream), {}};
    try {
      for (const std::uint8_t pixel : nin::decode_image(file, decoding)) {
        std::cout.put(static_cast<char>(pixel));
      }
    } catch (const nin::Error& error) {
      std::cerr << "error: " << argv[i] << ": " << error.what() << '\n';
      return 2;
    }
  }
}
