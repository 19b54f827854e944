#include "torch_process.h"

#include <dlfcn.h>
#include <pthread.h>
#include <torch/cuda.h>

#include <atomic>
#include <charconv>
#include <filesystem>
#include <mutex>
#include <system_error>
#include <utility>

#include "text.h"

namespace nin {
namespace {

std::atomic<bool> forked = false;

}  // namespace

std::string reason_of(std::string text) {
  text.erase(text.find_last_not_of("\n ") + 1);
  const bool inside = text.starts_with("The following operation failed");
  return one_line(inside ? text.substr(text.rfind('\n') + 1) : text.substr(0, text.find('\n')));
}

/// It is loaded here instead of linked, so that one binary serves both builds of LibTorch, and a
/// machine without a GPU doesn't wait for hundreds of megabytes of kernels. It has to happen before
/// the first call: LibTorch asks for its CUDA half once and remembers a no.
void load_cuda() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (dlopen("libcuda.so.1", RTLD_LAZY) == nullptr) return;
    Dl_info info{};
    if (dladdr(reinterpret_cast<const void*>(&torch::cuda::device_count), &info) == 0) return;
    const auto library = std::filesystem::path(info.dli_fname).replace_filename("libtorch_cuda.so");
    dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL);
  });
}

c10::Device parse_device(const std::string& text) {
  const auto colon = text.find(':');
  const std::string kind = text.substr(0, colon);
  if (text == "cpu") return c10::kCPU;
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
  return {c10::kCUDA, static_cast<c10::DeviceIndex>(index)};
}

void watch_forks() {
  static const int watched = pthread_atfork(nullptr, nullptr, [] { forked = true; });
  if (watched != 0) throw std::bad_alloc();  // its only error
}

bool is_forked() { return forked; }

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

/// Does nothing where LibTorch was built without OpenMP.
void OneThread::set(int count) {
  static const auto function =
      reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
  if (function != nullptr) function(count);
}

}  // namespace nin
