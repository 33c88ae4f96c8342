#pragma once

#include <string_view>

namespace epistle::cli {

/// The commit of the sources, as of the last time that the build was configured; "unknown" outside a repository.
[[nodiscard]] std::string_view built_commit() noexcept;

}  // namespace epistle::cli
