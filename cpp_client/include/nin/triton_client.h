#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nin/error.h"
#include "nin/files.h"
#include "nin/prediction.h"

namespace nin {

struct TritonOptions {
  std::string url = "127.0.0.1:8000";   ///< the server's HTTP address, HOST:PORT or http://...
  std::string model = "fashion_mnist";  ///< a model of either graph
  double timeout_s = 30;                ///< for connecting and for each answer
};

/// Asks a Triton server over HTTP: the KServe v2 protocol with its binary tensor extension.
///
/// The same calls and answers as Classifier's. Owns one connection; movable, not copyable; a
/// moved-from object may only be destroyed or assigned. Calls on one object must not overlap: one
/// object per thread. References of graph() and labels() live as long as the object. After fork(),
/// the child's copy opens a connection of its own.
class TritonClient {
 public:
  /// Asks the server for the model's inputs, outputs and labels, and checks that they are those
  /// of a known graph. Throws Error where it can't be reached or answers otherwise.
  explicit TritonClient(const TritonOptions& options = {});
  ~TritonClient();
  TritonClient(TritonClient&&) noexcept;
  TritonClient& operator=(TritonClient&&) noexcept;

  /// As Classifier::classify and so on; N images go in requests of at most the model's largest
  /// batch. Throw Error where the input or the server's answer isn't what the contract says.
  [[nodiscard]] std::vector<Prediction> classify(std::span<const std::uint8_t> pixels) const;
  [[nodiscard]] std::vector<std::vector<Prediction>> top(std::span<const std::uint8_t> pixels,
                                                         std::size_t k) const;
  [[nodiscard]] std::vector<float> logits(std::span<const std::uint8_t> pixels) const;
  [[nodiscard]] std::vector<float> logits(std::span<const float> images) const;
  [[nodiscard]] Outputs run(std::span<const std::uint8_t> pixels) const;
  [[nodiscard]] Outputs run(std::span<const float> images) const;

  [[nodiscard]] const std::string& graph() const;
  [[nodiscard]] const std::vector<std::string>& labels() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nin
