#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "nin/decoding.h"
#include "nin/error.h"
#include "nin/prediction.h"

namespace nin {

enum class ElementType { uint8, float32 };

/// What a model takes: batches of items of one shape.
struct Input {
  std::string name;
  ElementType type;
  std::vector<std::size_t> shape;  ///< of one item: {28, 28}, {224, 224, 3}, {3, 224, 224}

  /// How many numbers one item has.
  [[nodiscard]] std::size_t item_size() const;
};

/// What an application needs to know of a model.
struct ModelInfo {
  std::string graph;  ///< its name: in the artifact, or the server's
  Input input;
  std::vector<std::string> labels;   ///< of the classes, in the order of the outputs
  std::size_t max_batch;             ///< the largest batch that it is promised to take
  std::optional<Decoding> decoding;  ///< of image files, where it takes pixels
};

/// Whatever classifies images: Classifier in this process, TritonClient by a server.
///
/// A model takes either pixels, uint8 (N, height, width) grey or (N, height, width, 3) RGB, or
/// images, float32 (N, channels, height, width), normalised as the network was trained; info() says
/// which. N is what the size of the input gives, and may be 0; large inputs are run in parts.
/// All methods throw Error where the input isn't of the model's type or its size no multiple of an
/// item's, where the model fails, or where an output isn't a finite number.
class Predictor {
 public:
  virtual ~Predictor() = default;

  /// What the model is; lives as long as this object.
  [[nodiscard]] virtual const ModelInfo& info() const = 0;
  [[nodiscard]] const std::string& graph() const { return info().graph; }
  [[nodiscard]] const std::vector<std::string>& labels() const { return info().labels; }

  /// Logits and probabilities of one run, row-major (N, labels().size()).
  [[nodiscard]] virtual Outputs run(std::span<const std::uint8_t> pixels) const = 0;
  [[nodiscard]] virtual Outputs run(std::span<const float> images) const = 0;

  /// The raw logits alone.
  [[nodiscard]] std::vector<float> logits(std::span<const std::uint8_t> pixels) const;
  [[nodiscard]] std::vector<float> logits(std::span<const float> images) const;

  /// The most probable class of each image.
  [[nodiscard]] std::vector<Prediction> classify(std::span<const std::uint8_t> pixels) const;
  [[nodiscard]] std::vector<Prediction> classify(std::span<const float> images) const;

  /// The `k` most probable classes of each image, best first; k is 1 to labels().size().
  [[nodiscard]] std::vector<std::vector<Prediction>> top(std::span<const std::uint8_t> pixels,
                                                         std::size_t k) const;
  [[nodiscard]] std::vector<std::vector<Prediction>> top(std::span<const float> images,
                                                         std::size_t k) const;

  /// One PNG or JPEG file as the model's pixels, by its own decoding: for any of the methods above.
  /// Throws Error where decode_image does, or where the model has no decoding.
  [[nodiscard]] std::vector<std::uint8_t> decode(std::span<const std::uint8_t> file) const;

  /// The most probable class of each PNG or JPEG file.
  [[nodiscard]] std::vector<Prediction> classify_files(
      std::span<const std::vector<std::uint8_t>> files) const;

 protected:
  Predictor() = default;
  Predictor(Predictor&&) noexcept = default;
  Predictor& operator=(Predictor&&) noexcept = default;
};

}  // namespace nin
