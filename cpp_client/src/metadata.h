#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "json.h"
#include "nin/predictor.h"

namespace nin {

/// More classes than this, no file and no server may have.
inline constexpr std::size_t classes_at_most = 100'000;

/// A larger batch is asked of no file and no server, whatever it says.
inline constexpr std::size_t batch_at_most = 65'536;

/// Inputs with the outputs that are right, and how far off an output may be.
struct Golden {
  std::size_t count;
  std::vector<std::uint8_t> inputs;  ///< (N, ...): pixels, or images not yet normalised
  std::map<std::string, std::vector<double>> outputs;  ///< by name, each (N, labels)
  std::map<std::string, double> budget;                ///< by name, the largest absolute error
};

/// How a float image is made of bytes, by channel: (byte / 255 - mean) / std.
struct Normalisation {
  std::vector<float> mean;
  std::vector<float> std;
};

/// What an export says of itself.
struct Metadata {
  ModelInfo info;
  std::vector<std::string> outputs;  ///< `logits` first; of pixels `probabilities` follow
  Normalisation normalisation;       ///< of float images; else empty
  Golden golden;
  std::string weights_sha256;
};

/// The names of the texts that an export carries, and that parse_metadata needs.
inline constexpr const char* metadata_keys[] = {"contract", "labels", "golden", "weights_sha256"};

/// Reads them. Throws Error where one is missing or isn't what the exporters write.
[[nodiscard]] Metadata parse_metadata(const std::map<std::string, std::string>& texts);

/// The names of the outputs of a model that takes this.
[[nodiscard]] std::vector<std::string> output_names(const Input& input);

/// Whether items of this shape are pixels or images, of a size that memory can hold.
[[nodiscard]] bool is_usable(const Input& input);

/// Reads `contract.files`, the decoding of image files to what the model takes. Throws Error or
/// json::exception where it isn't one, or gives other pixels.
[[nodiscard]] Decoding parse_decoding(const nlohmann::json& files, const Input& input);

/// The golden inputs as the float images that the model takes.
[[nodiscard]] std::vector<float> normalise(const Metadata& metadata);

/// A shape for a message: "(N, 28, 28)".
[[nodiscard]] std::string to_text(const Input& input);

}  // namespace nin
