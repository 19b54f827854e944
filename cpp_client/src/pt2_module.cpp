#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <functional>
#include <thread>

#include "instruction_set.h"
#include "json.h"
#include "metadata.h"
#include "module.h"
#include "text.h"
#include "torch_process.h"

namespace nin {
namespace {

using caffe2::serialize::PyTorchStreamReader;
using torch::inductor::AOTIModelPackageLoader;

constexpr const char* batch_sizes_key = "batch_sizes";
constexpr const char* instruction_set_key = "instruction_set";

std::string read_record(PyTorchStreamReader& archive, const std::string& name) {
  const auto [data, size] = archive.getRecord(name);
  return {static_cast<const char*>(data.get()), size};
}

Texts read_texts(const std::filesystem::path& path) {
  PyTorchStreamReader archive(path.string());
  Texts texts;
  for (const std::string& name : archive.getAllRecords()) {
    constexpr std::string_view folder = "extra/";
    if (name.starts_with(folder)) {
      texts[name.substr(folder.size())] = read_record(archive, name);
    }
  }
  return texts;
}

std::vector<std::size_t> parse_sizes(const std::string& text) {
  try {
    const auto sizes = parse_json(text).get<std::vector<std::size_t>>();
    const auto usable = [](std::size_t size) { return size >= 1 && size <= batch_at_most; };
    if (std::ranges::count(sizes, 1U) == 1 && std::ranges::all_of(sizes, usable)) return sizes;
  } catch (const nlohmann::json::exception&) {  // said below
  }
  throw Error("its batch sizes are '" + one_line(text) + "', expected 1 and others");
}

/// Machine code for batches of a few sizes.
class Pt2Module final : public Module {
 public:
  Pt2Module(const std::filesystem::path& path, c10::Device device) : path_(path) {
    if (!device.is_cpu()) {
      throw Error(path.string() + " holds machine code for the CPU; use the .pt file on " +
                  device.str());
    }
    texts_ =
        translate(path.string() + " is not a whole .pt2 package", [&] { return read_texts(path); });
  }

  [[nodiscard]] const Texts& texts() const override { return texts_; }

  void prepare(std::size_t /*max_batch*/) override {
    check_instruction_set(texts_[instruction_set_key]);  // before any of its code is loaded
    const std::size_t threads = std::max(1U, std::thread::hardware_concurrency());
    for (const std::size_t size : parse_sizes(texts_[batch_sizes_key])) {
      const std::string name = "batch_" + std::to_string(size);
      libraries_[size] =
          std::make_unique<AOTIModelPackageLoader>(path_.string(), name, false, threads);
    }
  }

  [[nodiscard]] std::size_t part_of(std::size_t count) const override {
    return libraries_.lower_bound(count)->first;
  }

  [[nodiscard]] std::vector<std::size_t> own_sizes() const override {
    std::vector<std::size_t> sizes;
    for (const auto& [size, library] : libraries_) sizes.push_back(size);
    return sizes;
  }

  [[nodiscard]] bool prefers_workers() const override { return true; }

  [[nodiscard]] std::vector<at::Tensor> forward(const at::Tensor& batch) const override {
    return libraries_.at(static_cast<std::size_t>(batch.size(0)))->run({batch});
  }

 private:
  std::filesystem::path path_;
  Texts texts_;
  /// By batch size, the largest first.
  std::map<std::size_t, std::unique_ptr<AOTIModelPackageLoader>, std::greater<>> libraries_;
};

}  // namespace

std::unique_ptr<Module> open_pt2(const std::filesystem::path& path, c10::Device device) {
  return std::make_unique<Pt2Module>(path, device);
}

bool is_pt2(const std::filesystem::path& path) {
  try {
    PyTorchStreamReader archive(path.string());
    return archive.hasRecord("archive_format") && read_record(archive, "archive_format") == "pt2";
  } catch (const std::exception&) {
    return path.extension() == ".pt2";
  }
}

}  // namespace nin
