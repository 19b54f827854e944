// Writes the 784 pixels of each image file named to stdout, for comparison with Python's.

#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

#include "nin/error.h"
#include "nin/files.h"

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    std::ifstream stream(argv[i], std::ios::binary);
    const std::vector<std::uint8_t> file{std::istreambuf_iterator<char>(stream), {}};
    try {
      for (const std::uint8_t pixel : nin::decode_image(file)) {
        std::cout.put(static_cast<char>(pixel));
      }
    } catch (const nin::Error& error) {
      std::cerr << "error: " << argv[i] << ": " << error.what() << '\n';
      return 2;
    }
  }
}
