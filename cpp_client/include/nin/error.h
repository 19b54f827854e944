#pragma once

#include <stdexcept>

namespace nin {

/// The only exception that this library throws on purpose. The message says in one line what was
/// found, what was expected, and where it helps what to do.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace nin
