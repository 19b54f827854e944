#include "nin/classifier.h"

#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <pthread.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/cuda.h>
#include <torch/script.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cmath>
#include <fstream>
#include <mutex>
#include <sstream>
#include <system_error>
#include <utility>

#include "metadata.h"
#include "outputs.h"
#include "text.h"

namespace nin {
namespace {

namespace fs = std::filesystem;

/// Larger batches run slower on a CPU: their activations leave the cache (docs/bench-cpp.md).
constexpr std::size_t cpu_batch = 16;

/// The line of LibTorch's text that says what happened: of an error inside the model the last.
std::string reason_of(std::string text) {
  text.erase(text.find_last_not_of("\n ") + 1);
  const bool inside = text.starts_with("The following operation failed");
  return one_line(inside ? text.substr(text.rfind('\n') + 1) : text.substr(0, text.find('\n')));
}

/// LibTorch's errors as ours; nothing else of it leaves this file.
template <typename Action>
auto translate(const std::string& what, Action action) {
  try {
    return action();
  } catch (const Error&) {
    throw;
  } catch (const c10::Error& error) {
    throw Error(what + ": " + reason_of(error.what_without_backtrace()));
  } catch (const std::bad_alloc&) {
    throw Error(what + ": not enough memory");
  } catch (const std::exception& error) {
    throw Error(what + ": " + reason_of(error.what()));
  }
}

/// Makes LibTorch's CUDA half known to it, where there is a driver and that half.
///
/// It is loaded here instead of linked, so that one binary serves both builds of LibTorch, and a
/// machine without a GPU doesn't wait for hundreds of megabytes of kernels. It has to happen before
/// the first call: LibTorch asks for its CUDA half once and remembers a no.
void load_cuda() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (dlopen("libcuda.so.1", RTLD_LAZY) == nullptr) return;
    Dl_info info{};
    if (dladdr(reinterpret_cast<const void*>(&torch::cuda::device_count), &info) == 0) return;
    const fs::path library = fs::path(info.dli_fname).replace_filename("libtorch_cuda.so");
    dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL);
  });
}

/// Whether this process was made by fork() after its parent had a classifier.
std::atomic<bool> forked = false;

void watch_forks() {
  static const int watched = pthread_atfork(nullptr, nullptr, [] { forked = true; });
  if (watched != 0) throw std::bad_alloc();  // its only error
}

/// OpenMP's number belongs to each calling thread. Its threads don't come along through fork(): the
/// child would wait for them forever, unless it does all itself.
void settle_threads() {
  thread_local bool alone = false;
  if (!forked) {
    at::internal::lazy_init_num_threads();
  } else if (!std::exchange(alone, true)) {
    at::set_num_threads(1);
  }
}

/// Has LibTorch's OpenMP use one thread in this thread of ours alone. at::set_num_threads would
/// change it for others too.
class OneThread {
 public:
  OneThread() { set(1); }
  ~OneThread() { set(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  /// Does nothing where LibTorch was built without OpenMP.
  static void set(int count) {
    static const auto function =
        reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
    if (function != nullptr) function(count);
  }

  int before_ = at::get_num_threads();
};

torch::Device parse_device(const std::string& text) {
  const auto colon = text.find(':');
  const std::string kind = text.substr(0, colon);
  if (text == "cpu") return torch::kCPU;
  int index = 0;
  if (colon != std::string::npos) {
    const char* end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data() + colon + 1, end, index);
    if (error != std::errc() || rest != end || index < 0 || index > 127) index = -1;
  }
  if (kind != "cuda" || index < 0) {
    throw Error("unknown device '" + text + "'; expected cpu, cuda or cuda:N");
  }
  const auto count = translate("can't ask for CUDA devices", torch::cuda::device_count);
  if (static_cast<std::size_t>(index) >= static_cast<std::size_t>(count)) {
    throw Error("no device " + text + ": " + std::to_string(count) + " CUDA devices found");
  }
  return {torch::kCUDA, static_cast<torch::DeviceIndex>(index)};
}

void check_file(const fs::path& model) {
  std::error_code ignored;
  if (!fs::exists(model, ignored)) {
    throw Error("no model file at " + model.string() + "; export one by `make export`");
  }
  if (!fs::is_regular_file(model, ignored)) throw Error(model.string() + " is not a file");
  if (!std::ifstream(model)) throw Error("can't read " + model.string());
  if (fs::file_size(model, ignored) == 0) {
    throw Error(model.string() + " is not a TorchScript file: it has 0 bytes");
  }
}

torch::Tensor find_output(const torch::IValue& result, std::size_t index, std::size_t outputs) {
  if (outputs == 1 && result.isTensor()) return result.toTensor();
  if (result.isTuple()) {
    const auto& elements = result.toTupleRef().elements();
    if (elements.size() == outputs && elements[index].isTensor()) {
      return elements[index].toTensor();
    }
  }
  throw Error("the model gives " + result.tagKind() + ", expected " + std::to_string(outputs) +
              " tensors");
}

void append(std::vector<float>& values, const torch::Tensor& output, int64_t count,
            std::size_t classes) {
  const std::vector<int64_t> expected{count, static_cast<int64_t>(classes)};
  if (output.scalar_type() != torch::kFloat32 || output.sizes() != expected) {
    std::ostringstream text;
    text << "the model gives " << output.scalar_type() << ' ' << output.sizes()
         << ", expected Float [" << count << ", " << classes << ']';
    throw Error(text.str());
  }
  const torch::Tensor host = output.to(torch::kCPU).contiguous();
  const float* data = host.const_data_ptr<float>();
  values.insert(values.end(), data, data + host.numel());
}

}  // namespace

struct Classifier::Impl {
  Impl(const fs::path& model, const Options& options)
      : device((load_cuda(), parse_device(options.device))) {
    watch_forks();
    settle_threads();
    check_file(model);
    torch::jit::ExtraFilesMap texts;
    for (const char* key : metadata_keys) texts[key] = "";
    module = translate(model.string() + " is not a whole TorchScript file",
                       [&] { return torch::jit::load(model.string(), device, texts); });
    try {
      prepare(texts, options.replay);
    } catch (const Error& error) {
      throw Error(model.string() + ": " + error.what());
    }
  }

  void prepare(const torch::jit::ExtraFilesMap& texts, bool replays) {
    metadata = parse_metadata({texts.begin(), texts.end()});
    translate("it can't be run", [&] {
      const c10::InferenceMode guard;
      // picks oneDNN's layouts once, for all calls; it knows none for CUDA
      if (device.is_cpu()) module = torch::jit::optimize_for_inference(module);
      if (replays) replay();
    });
  }

  /// Runs items in parts that are fast on this device, and no larger than the model takes.
  template <typename T>
  [[nodiscard]] Outputs run_parts(std::span<const T> items) const {
    const Input& input = metadata.info.input;
    const std::size_t item = input.item_size();
    const std::size_t most = metadata.info.max_batch;
    const std::size_t part = (device.is_cpu() ? std::min(cpu_batch, most) : most) * item;
    std::vector<int64_t> sizes{0};
    sizes.insert(sizes.end(), input.shape.begin(), input.shape.end());
    Outputs outputs;
    for (std::size_t start = 0; start < items.size(); start += part) {
      const auto some = items.subspan(start, std::min(part, items.size() - start));
      sizes.front() = static_cast<int64_t>(some.size() / item);
      // from_blob wants a mutable pointer, and the model doesn't write to its input
      forward(torch::from_blob(const_cast<T*>(some.data()), sizes,
                               torch::CppTypeToScalarType<T>::value),
              outputs);
    }
    if (input.type == ElementType::float32) {
      outputs.probabilities = softmax(outputs.logits, metadata.info.labels.size());
    }
    return outputs;
  }

  void forward(const torch::Tensor& batch, Outputs& outputs) const {
    const c10::InferenceMode guard;
    settle_threads();
    if (forked && device.is_cuda()) {
      throw Error("CUDA can't be used after fork(); fork before the first classifier is made");
    }
    // The file is frozen and optimized already: profiling runs for each new batch size would only
    // make the first calls slower (docs/bench-cpp.md).
    const torch::jit::GraphOptimizerEnabledGuard no_profiling(false);
    const torch::IValue result = module.get_method("forward")({batch.to(device)});
    const std::size_t count = metadata.outputs.size();
    const std::size_t classes = metadata.info.labels.size();
    append(outputs.logits, find_output(result, 0, count), batch.size(0), classes);
    if (count > 1) {
      append(outputs.probabilities, find_output(result, 1, count), batch.size(0), classes);
    }
  }

  template <typename T>
  [[nodiscard]] Outputs run(std::span<const T> items, ElementType type) const {
    check_input(metadata.info, type, items.size());
    Outputs outputs = translate("can't run the model", [&] { return run_parts(items); });
    check_finite(outputs, metadata.info.labels.size());
    return outputs;
  }

  void replay() const {
    if (metadata.info.input.type == ElementType::uint8) {
      replay(std::span<const std::uint8_t>(metadata.golden.inputs));
    } else {
      const std::vector<float> images = normalise(metadata);
      replay(std::span<const float>(images));
    }
  }

  /// Together, and each alone: what is right in a batch may be wrong for a single image. The first
  /// alone as any call will be run, the others on one thread: on a busy machine, threads wait for
  /// each other at every layer of so small a batch (measured: docs/cpp.md).
  template <typename T>
  void replay(std::span<const T> items) const {
    check_golden(run_parts(items), "in a batch");
    const std::size_t item = metadata.info.input.item_size();
    Outputs alone = run_parts(items.first(item));
    const OneThread guard;
    for (std::size_t start = item; start < items.size(); start += item) {
      alone.append(run_parts(items.subspan(start, item)));
    }
    check_golden(alone, "for single images");
  }

  void check_golden(const Outputs& outputs, const char* how) const {
    for (const auto& [name, expected] : metadata.golden.outputs) {
      const auto& values = name == "logits" ? outputs.logits : outputs.probabilities;
      double worst = 0;
      for (std::size_t i = 0; i < expected.size(); ++i) {
        const double error = std::abs(values[i] - expected[i]);
        worst = error <= worst ? worst : error;  // NaN is kept
      }
      if (const double allowed = metadata.golden.budget.at(name); !(worst <= allowed)) {
        std::ostringstream text;
        text << "golden vectors: " << name << " is off by " << worst << ' ' << how
             << ", allowed is " << allowed << "; the file is damaged, export it again";
        throw Error(text.str());
      }
    }
  }

  torch::Device device;
  torch::jit::Module module;
  Metadata metadata;
};

Classifier::Classifier(const fs::path& model, const Options& options)
    : impl_(std::make_unique<Impl>(model, options)) {}
Classifier::~Classifier() = default;
Classifier::Classifier(Classifier&&) noexcept = default;
Classifier& Classifier::operator=(Classifier&&) noexcept = default;

const ModelInfo& Classifier::info() const { return impl_->metadata.info; }
const std::string& Classifier::weights_sha256() const { return impl_->metadata.weights_sha256; }

Outputs Classifier::run(std::span<const std::uint8_t> pixels) const {
  return impl_->run(pixels, ElementType::uint8);
}

Outputs Classifier::run(std::span<const float> images) const {
  return impl_->run(images, ElementType::float32);
}

void set_threads(int count) {
  if (count < 1 || count > 1024) {
    throw Error("can't use " + std::to_string(count) + " threads, 1 to 1024");
  }
  if (!forked) at::set_num_threads(count);
}

}  // namespace nin
