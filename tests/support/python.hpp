// Tests of scripts that are written in Python are skipped where it is missing.
#pragma once

#include <cstdlib>

namespace epistle::test {

[[nodiscard]] inline bool has_python() { return std::system("command -v python3 >/dev/null 2>&1") == 0; }

}  // namespace epistle::test
