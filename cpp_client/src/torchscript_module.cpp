#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/script.h>

#include <algorithm>

#include "metadata.h"
#include "module.h"
#include "torch_process.h"

namespace nin {
namespace {

/// Larger batches run slower on a CPU: their activations leave the cache (docs/speed.md).
constexpr std::size_t cpu_batch = 16;

class TorchScriptModule final : public Module {
 public:
  TorchScriptModule(const std::filesystem::path& path, c10::Device device) : device_(device) {
    torch::jit::ExtraFilesMap texts;
    for (const char* key : metadata_keys) texts[key] = "";
    module_ = translate(path.string() + " is not a whole TorchScript file",
                        [&] { return torch::jit::load(path.string(), device, texts); });
    texts_ = {texts.begin(), texts.end()};
  }

  [[nodiscard]] const Texts& texts() const override { return texts_; }

  void prepare(std::size_t max_batch) override {
    most_ = device_.is_cpu() ? std::min(cpu_batch, max_batch) : max_batch;
    // picks oneDNN's layouts once, for all calls; it knows none for CUDA
    if (device_.is_cpu()) module_ = torch::jit::optimize_for_inference(module_);
  }

  [[nodiscard]] std::size_t part_of(std::size_t count) const override {
    return std::min(count, most_);
  }

  [[nodiscard]] std::vector<at::Tensor> forward(const at::Tensor& batch) const override {
    if (is_forked() && device_.is_cuda()) {
      throw Error("CUDA can't be used after fork(); fork before the first classifier is made");
    }
    // The file is frozen and optimized already: profiling runs for each new batch size would only
    // make the first calls slower (docs/speed.md).
    const torch::jit::GraphOptimizerEnabledGuard no_profiling(false);
    return tensors_of(module_.get_method("forward")({batch.to(device_)}));
  }

 private:
  static std::vector<at::Tensor> tensors_of(const torch::IValue& result) {
    if (result.isTensor()) return {result.toTensor()};
    std::vector<at::Tensor> tensors;
    if (result.isTuple()) {
      for (const auto& element : result.toTupleRef().elements()) {
        if (element.isTensor()) tensors.push_back(element.toTensor());
      }
    }
    if (tensors.empty() || tensors.size() != result.toTupleRef().elements().size()) {
      throw Error("the model gives " + result.tagKind() + ", expected tensors");
    }
    return tensors;
  }

  c10::Device device_;
  torch::jit::Module module_;
  Texts texts_;
  std::size_t most_ = 1;
};

}  // namespace

std::unique_ptr<Module> open_torchscript(const std::filesystem::path& path, c10::Device device) {
  return std::make_unique<TorchScriptModule>(path, device);
}

}  // namespace nin
