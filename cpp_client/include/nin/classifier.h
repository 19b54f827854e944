#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "nin/predictor.h"

namespace nin {

struct Options {
  std::string device = "cpu";  ///< "cpu", "cuda" or "cuda:N"
  bool replay = true;          ///< run the golden vectors that the file carries, before it is used
};

/// Runs a TorchScript (.pt) or .pt2 export of this project, of any model, in this process by
/// LibTorch.
///
/// A .pt2 package holds machine code, which is refused on a CPU without its instruction set, and
/// runs on the CPU only: a call with several images has each of its threads run some of them. To
/// load it takes a folder for temporary files, /tmp.
///
/// Owns the module; movable, not copyable; a moved-from object may only be destroyed or assigned.
/// Several threads may call the const methods of one object at the same time. What is returned
/// belongs to the caller, except for the references of info() and its parts, and weights_sha256().
/// After fork(), the child may use its copy, or load another; each call uses one thread then. On
/// CUDA they throw Error.
class Classifier final : public Predictor {
 public:
  /// Loads `model` onto the device, checks what it says of itself, and replays the golden vectors,
  /// together and one at a time: an export that doesn't reproduce them within its own budget is
  /// refused. Throws Error naming the file and the reason.
  explicit Classifier(const std::filesystem::path& model, const Options& options = {});
  ~Classifier() override;
  Classifier(Classifier&&) noexcept;
  Classifier& operator=(Classifier&&) noexcept;

  [[nodiscard]] const ModelInfo& info() const override;
  [[nodiscard]] Outputs run(std::span<const std::uint8_t> pixels) const override;
  [[nodiscard]] Outputs run(std::span<const float> images) const override;

  /// The digest of the weights that the file was exported from.
  [[nodiscard]] const std::string& weights_sha256() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// How many threads LibTorch uses inside one call; process-wide, to be set before the first call.
/// It uses every core unless told otherwise; after fork(), the child uses one, whatever it's told.
/// Throws Error for less than 1 or more than 1024.
void set_threads(int count);

}  // namespace nin
