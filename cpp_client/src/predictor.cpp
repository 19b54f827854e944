#include "nin/predictor.h"

#include <functional>
#include <numeric>
#include <utility>

#include "metadata.h"
#include "outputs.h"
#include "text.h"

namespace nin {
namespace {

std::vector<Prediction> first_of_each(std::vector<std::vector<Prediction>> top) {
  std::vector<Prediction> best;
  best.reserve(top.size());
  for (auto& predictions : top) best.push_back(std::move(predictions.front()));
  return best;
}

}  // namespace

std::size_t Input::item_size() const {
  return std::accumulate(shape.begin(), shape.end(), std::size_t{1}, std::multiplies<>());
}

void check_input(const ModelInfo& info, ElementType type, std::size_t size) {
  const bool pixels = type == ElementType::uint8;
  if (info.input.type != type) {
    throw Error("the model " + one_line(info.graph) + " takes " + to_text(info.input) + ", not " +
                (pixels ? "pixels" : "float images"));
  }
  const std::size_t item = info.input.item_size();
  if (size % item != 0) {
    throw Error(std::to_string(size) + (pixels ? " pixels" : " floats") + " are no multiple of " +
                std::to_string(item) + ", the size of an image");
  }
}

std::vector<float> Predictor::logits(std::span<const std::uint8_t> pixels) const {
  return run(pixels).logits;
}

std::vector<float> Predictor::logits(std::span<const float> images) const {
  return run(images).logits;
}

std::vector<Prediction> Predictor::classify(std::span<const std::uint8_t> pixels) const {
  return first_of_each(top(pixels, 1));
}

std::vector<Prediction> Predictor::classify(std::span<const float> images) const {
  return first_of_each(top(images, 1));
}

std::vector<std::vector<Prediction>> Predictor::top(std::span<const std::uint8_t> pixels,
                                                    std::size_t k) const {
  return top_predictions(run(pixels).probabilities, labels(), k);
}

std::vector<std::vector<Prediction>> Predictor::top(std::span<const float> images,
                                                    std::size_t k) const {
  return top_predictions(run(images).probabilities, labels(), k);
}

std::vector<std::uint8_t> Predictor::decode(std::span<const std::uint8_t> file) const {
  if (info().decoding) return decode_image(file, *info().decoding);
  const bool pixels = info().input.type == ElementType::uint8;
  throw Error("the model " + one_line(graph()) +
              (pixels ? " doesn't say how it takes image files; decode them to its pixels by "
                        "nin::decode_image, or export and publish it again"
                      : " takes float images, no image files; use its classifier"));
}

std::vector<Prediction> Predictor::classify_files(
    std::span<const std::vector<std::uint8_t>> files) const {
  std::vector<std::uint8_t> pixels;
  for (std::size_t i = 0; i < files.size(); ++i) {
    try {
      const auto decoded = decode(files[i]);
      pixels.insert(pixels.end(), decoded.begin(), decoded.end());
    } catch (const Error& error) {
      throw Error("file " + std::to_string(i) + " of " + std::to_string(files.size()) + ": " +
                  error.what());
    }
  }
  return classify(pixels);
}

}  // namespace nin
