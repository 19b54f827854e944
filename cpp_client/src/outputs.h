#pragma once

#include <cstddef>

#include "nin/prediction.h"

namespace nin {

/// Throws Error where one of the outputs isn't a finite number: no class can be told from them.
void check_finite(const Outputs& outputs, std::size_t classes);

}  // namespace nin
