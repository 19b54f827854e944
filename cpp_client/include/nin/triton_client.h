#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "nin/predictor.h"

namespace nin {

struct TritonOptions {
  std::string url = "127.0.0.1:8000";  ///< the server's HTTP address, HOST:PORT or http://...
  std::string model{};                 ///< its name; empty is the server's only classifier
  double timeout_s = 30;               ///< for connecting and for each answer
};

/// Asks a Triton server over HTTP: the KServe v2 protocol with its binary tensor extension.
///
/// The same calls and answers as Classifier's. Owns one connection; movable, not copyable; a
/// moved-from object may only be destroyed or assigned. Calls on one object must not overlap: one
/// object per thread. References of info() and its parts live as long as the object. After fork(),
/// the child's copy opens a connection of its own.
class TritonClient final : public Predictor {
 public:
  /// Asks the server for the model's input, outputs, largest batch, labels and decoding. Throws
  /// Error where it can't be reached, answers otherwise than Triton does, or has no such model.
  /// Where no model is named, that is the only M which has an M_image beside it.
  explicit TritonClient(const TritonOptions& options = {});
  ~TritonClient() override;
  TritonClient(TritonClient&&) noexcept;
  TritonClient& operator=(TritonClient&&) noexcept;

  [[nodiscard]] const ModelInfo& info() const override;
  [[nodiscard]] Outputs run(std::span<const std::uint8_t> pixels) const override;
  [[nodiscard]] Outputs run(std::span<const float> images) const override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nin
