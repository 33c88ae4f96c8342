// The Python files that try packages of others (apps/epistle/probe). cmake/EpistleAssets.cmake writes their contents
// into a source file.
#pragma once

#include <span>
#include <string_view>

namespace epistle::cli {

struct ProbeScript {
  std::string_view name;
  std::string_view text;
};

[[nodiscard]] std::span<const ProbeScript> probe_scripts() noexcept;

}  // namespace epistle::cli
