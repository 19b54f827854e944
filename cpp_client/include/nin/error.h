#pragma once

#include <stdexcept>

namespace nin {

/// What this library throws, beside std::bad_alloc. The message says in one line what was found,
/// what was expected, and where it helps what to do.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace nin
