// Instrumented code is slower, and some tests do not work under a sanitizer.
#pragma once

#include "core/sanitizers.hpp"

namespace epistle::testing {

using epistle::kAddressSanitizer;
using epistle::kThreadSanitizer;

/// Where the same code goes through ever more data, less of it will do: a sanitizer looks at accesses, not at values.
inline constexpr bool kInstrumented = kThreadSanitizer || kAddressSanitizer;

}  // namespace epistle::testing
