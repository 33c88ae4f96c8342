#include "built_commit.hpp"

namespace epistle::cli {

std::string_view built_commit() noexcept { return EPISTLE_COMMIT; }

}  // namespace epistle::cli
