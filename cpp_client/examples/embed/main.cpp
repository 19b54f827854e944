// Says what is on a picture: embed MODEL.pt PICTURE.png...

#include <nin/classifier.h>

#include <cstdint>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

std::vector<std::uint8_t> read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw nin::Error(std::string("can't open ") + path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: embed MODEL.pt PICTURE...\n";
    return 2;
  }
  try {
    const nin::Classifier classifier(argv[1]);
    for (int i = 2; i < argc; ++i) {
      const auto best = classifier.classify(classifier.decode(read(argv[i]))).front();
      std::cout << argv[i] << ": " << best.label << " (" << best.probability << ")\n";
    }
  } catch (const std::exception& error) {  // nin::Error, and what reading a file may throw
    std::cerr << "error: " << error.what() << '\n';
    return 2;
  }
}
