#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace nin {

using Texts = std::map<std::string, std::string>;

/// A model as LibTorch runs it, whatever kind of file it came from.
class Module {
 public:
  virtual ~Module() = default;

  /// The texts that the file carries; there before prepare().
  [[nodiscard]] virtual const Texts& texts() const = 0;

  /// To be called once, before the functions below, with the largest batch that the model takes.
  virtual void prepare(std::size_t max_batch) = 0;

  /// How many of `count` items, which are at least one, to run in one batch.
  [[nodiscard]] virtual std::size_t part_of(std::size_t count) const = 0;

  /// The batch sizes that have code of their own; none where the same runs them all.
  [[nodiscard]] virtual std::vector<std::size_t> own_sizes() const { return {}; }

  /// Whether several threads with a batch each are faster than one batch with several threads.
  [[nodiscard]] virtual bool prefers_workers() const { return false; }

  /// The outputs for a batch of a size that part_of gave, on any device. Threads may call it at the
  /// same time.
  [[nodiscard]] virtual std::vector<at::Tensor> forward(const at::Tensor& batch) const = 0;

 protected:
  Module() = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;
};

/// Each throws Error, naming the file, where it isn't a whole one of its kind.
[[nodiscard]] std::unique_ptr<Module> open_torchscript(const std::filesystem::path& path,
                                                       c10::Device device);
[[nodiscard]] std::unique_ptr<Module> open_pt2(const std::filesystem::path& path,
                                               c10::Device device);

/// Whether a file is a .pt2 package: by its content, or where that can't be read by its name.
[[nodiscard]] bool is_pt2(const std::filesystem::path& path);

}  // namespace nin
