#include "nin/classifier.h"

#include <c10/core/InferenceMode.h>
#include <torch/types.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <fstream>
#include <mutex>
#include <sstream>
#include <system_error>
#include <thread>
#include <utility>

#include "metadata.h"
#include "module.h"
#include "outputs.h"
#include "torch_process.h"

namespace nin {
namespace {

namespace fs = std::filesystem;

void check_file(const fs::path& model) {
  std::error_code ignored;
  if (!fs::exists(model, ignored)) {
    throw Error("no model file at " + model.string() + "; export one by `nin export torchscript`");
  }
  if (!fs::is_regular_file(model, ignored)) throw Error(model.string() + " is not a file");
  if (!std::ifstream(model)) throw Error("can't read " + model.string());
  if (fs::file_size(model, ignored) == 0) {
    throw Error(model.string() + " is not a model file: it has 0 bytes");
  }
}

std::unique_ptr<Module> open_module(const fs::path& model, c10::Device device) {
  check_file(model);
  return is_pt2(model) ? open_pt2(model, device) : open_torchscript(model, device);
}

/// Copies an output of `count` items to its place.
void store(const torch::Tensor& output, std::size_t count, std::size_t classes, float* place) {
  const std::vector<int64_t> expected{static_cast<int64_t>(count), static_cast<int64_t>(classes)};
  if (output.scalar_type() != torch::kFloat32 || output.sizes() != expected) {
    std::ostringstream text;
    text << "the model gives " << output.scalar_type() << ' ' << output.sizes()
         << ", expected Float [" << count << ", " << classes << ']';
    throw Error(text.str());
  }
  const torch::Tensor host = output.to(torch::kCPU).contiguous();
  std::copy_n(host.const_data_ptr<float>(), count * classes, place);
}

/// Items that are run in one batch.
struct Part {
  std::size_t start;
  std::size_t count;
};

/// Calls `work` for each of `count` numbers in several threads; the first exception is passed on.
///
/// The threads are made for each call: fork() would take none of a pool along.
template <typename Work>
void run_in_threads(std::size_t threads, std::size_t count, const Work& work) {
  std::atomic<std::size_t> next = 0;
  std::exception_ptr failed;
  std::mutex failing;
  const auto worker = [&] {
    settle_threads();
    const OneThread guard;
    try {
      for (std::size_t i = next++; i < count; i = next++) work(i);
    } catch (...) {
      const std::scoped_lock lock(failing);
      failed = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> others;
    for (std::size_t i = 1; i < threads; ++i) others.emplace_back(worker);
    worker();
  }
  if (failed) std::rethrow_exception(failed);
}

}  // namespace

struct Classifier::Impl {
  Impl(const fs::path& model, const Options& options) {
    load_cuda();
    const auto device = parse_device(options.device);
    watch_forks();
    settle_threads();
    module = open_module(model, device);
    try {
      prepare(options.replay);
    } catch (const Error& error) {
      throw Error(model.string() + ": " + error.what());
    }
  }

  void prepare(bool replays) {
    metadata = parse_metadata(module->texts());
    translate("it can't be run", [&] {
      const c10::InferenceMode guard;
      module->prepare(metadata.info.max_batch);
      if (replays) replay();
    });
  }

  /// Cuts `count` items into batches of the module's sizes, none larger than `most`.
  [[nodiscard]] std::vector<Part> parts_of(std::size_t count, std::size_t most) const {
    std::vector<Part> parts;
    for (std::size_t start = 0; start < count;) {
      parts.push_back({start, module->part_of(std::min(most, count - start))});
      start += parts.back().count;
    }
    return parts;
  }

  template <typename T>
  [[nodiscard]] Outputs run_all(std::span<const T> items) const {
    const std::size_t count = items.size() / metadata.info.input.item_size();
    settle_threads();  // after fork() there is one
    const auto threads = static_cast<std::size_t>(std::max(1, at::get_num_threads()));
    const std::size_t workers = module->prefers_workers() ? std::min(threads, count) : 1;
    if (workers < 2) return run_parts(items, parts_of(count, count), 1);
    return run_parts(items, parts_of(count, (count + workers - 1) / workers), workers);
  }

  template <typename T>
  [[nodiscard]] Outputs run_parts(std::span<const T> items, const std::vector<Part>& parts,
                                  std::size_t workers) const {
    const std::size_t count = items.size() / metadata.info.input.item_size();
    const std::size_t classes = metadata.info.labels.size();
    const bool two = metadata.outputs.size() > 1;
    Outputs outputs;
    outputs.logits.resize(count * classes);
    if (two) outputs.probabilities.resize(count * classes);
    const auto run_one = [&](std::size_t index) { forward(items, parts[index], outputs); };
    if (workers > 1) {
      run_in_threads(workers, parts.size(), run_one);
    } else {
      for (std::size_t index = 0; index < parts.size(); ++index) run_one(index);
    }
    if (!two) outputs.probabilities = softmax(outputs.logits, classes);
    return outputs;
  }

  /// Threads may write different parts of the outputs at the same time.
  template <typename T>
  void forward(std::span<const T> items, const Part& part, Outputs& outputs) const {
    const c10::InferenceMode guard;
    settle_threads();
    const Input& input = metadata.info.input;
    std::vector<int64_t> sizes{static_cast<int64_t>(part.count)};
    sizes.insert(sizes.end(), input.shape.begin(), input.shape.end());
    // from_blob wants a mutable pointer, and the model doesn't write to its input
    const auto batch = torch::from_blob(const_cast<T*>(&items[part.start * input.item_size()]),
                                        sizes, torch::CppTypeToScalarType<T>::value);
    const auto tensors = module->forward(batch);
    if (tensors.size() != metadata.outputs.size()) {
      throw Error("the model gives " + std::to_string(tensors.size()) + " tensors, expected " +
                  std::to_string(metadata.outputs.size()));
    }
    const std::size_t classes = metadata.info.labels.size();
    store(tensors[0], part.count, classes, &outputs.logits[part.start * classes]);
    if (tensors.size() > 1) {
      store(tensors[1], part.count, classes, &outputs.probabilities[part.start * classes]);
    }
  }

  template <typename T>
  [[nodiscard]] Outputs run(std::span<const T> items, ElementType type) const {
    check_input(metadata.info, type, items.size());
    Outputs outputs = translate("can't run the model", [&] { return run_all(items); });
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
    check_golden(run_all(items), "in a batch");
    const std::size_t item = metadata.info.input.item_size();
    Outputs alone = run_all(items.first(item));
    const OneThread guard;
    for (std::size_t start = item; start < items.size(); start += item) {
      alone.append(run_all(items.subspan(start, item)));
    }
    check_golden(alone, "for single images");
    replay_in_own_sizes(items);
  }

  /// Golden vectors that are too few are repeated.
  template <typename T>
  void replay_in_own_sizes(std::span<const T> items) const {
    const std::size_t item = metadata.info.input.item_size();
    for (const std::size_t size : module->own_sizes()) {
      std::vector<T> batch;
      for (std::size_t i = 0; i < size; ++i) {
        const auto one = items.subspan(i % metadata.golden.count * item, item);
        batch.insert(batch.end(), one.begin(), one.end());
      }
      check_golden(run_parts(std::span<const T>(batch), {{0, size}}, 1),
                   "in a batch of " + std::to_string(size));
    }
  }

  /// The outputs for the golden inputs, or for the first of them, or for all and some again.
  void check_golden(const Outputs& outputs, const std::string& how) const {
    for (const auto& [name, expected] : metadata.golden.outputs) {
      const auto& values = name == "logits" ? outputs.logits : outputs.probabilities;
      double worst = 0;
      for (std::size_t i = 0; i < values.size(); ++i) {
        const double error = std::abs(values[i] - expected[i % expected.size()]);
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

  std::unique_ptr<Module> module;
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
  if (!is_forked()) at::set_num_threads(count);
}

}  // namespace nin
