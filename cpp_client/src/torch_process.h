#pragma once

#include <ATen/Parallel.h>
#include <c10/core/Device.h>
#include <c10/util/Exception.h>

#include <new>
#include <stdexcept>
#include <string>

#include "nin/error.h"

/// What LibTorch needs of the whole process: its errors, devices, threads and forks.
namespace nin {

/// The line of LibTorch's text that says what happened: of an error inside the model the last.
[[nodiscard]] std::string reason_of(std::string text);

/// LibTorch's errors as ours; nothing else of it leaves the library.
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
void load_cuda();

/// "cpu", "cuda" or "cuda:N". Throws Error where it is something else, or isn't there.
[[nodiscard]] c10::Device parse_device(const std::string& text);

/// From the first call on, is_forked knows.
void watch_forks();

/// Whether this process was made by fork() after its parent had a classifier.
[[nodiscard]] bool is_forked();

/// To be called in each thread before LibTorch works in it.
void settle_threads();

/// Has LibTorch's OpenMP use one thread in this thread of ours alone. at::set_num_threads would
/// change it for others too.
class OneThread {
 public:
  OneThread() { set(1); }
  ~OneThread() { set(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  static void set(int count);

  int before_ = at::get_num_threads();
};

}  // namespace nin
