// Global objects that use the library before main: its own must not depend on their order.

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

#include "idx.h"
#include "nin/classifier.h"
#include "nin/triton_client.h"

namespace {

std::vector<std::uint8_t> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string artifact(const std::string& name) {
  const char* folder = std::getenv("NIN_ARTIFACTS");
  return (folder != nullptr ? std::string(folder) : NIN_ARTIFACTS_DIR) + '/' + name;
}

std::string refusal_of_a_server() {
  try {
    const nin::TritonClient client({.url = "127.0.0.1:1"});
  } catch (const nin::Error& error) {
    return error.what();
  }
  return "";
}

const std::string data = NIN_DATA_DIR;
const nin::Classifier classifier(artifact("fashion_mnist.pt"));
const nin::Classifier network(artifact("nin.pt"));
const auto images =
    nin::tool::decode_idx(read(data + "/t10k-images-idx3-ubyte.gz"), classifier.info().input);
const auto labels = nin::tool::decode_idx_labels(read(data + "/t10k-labels-idx1-ubyte.gz"));
const auto first =
    classifier.classify(std::span(images.pixels).first(classifier.info().input.item_size()));
const std::string refusal = refusal_of_a_server();

}  // namespace

int main() {
  const std::vector<float> black(network.info().input.item_size());
  const bool right = first.front().index == labels.front() && network.classify(black).size() == 1 &&
                     refusal.find("can't be reached") != std::string::npos;
  std::cout << (right ? "right" : "wrong: " + first.front().label + ", " + refusal) << '\n';
  return right ? 0 : 1;
}
