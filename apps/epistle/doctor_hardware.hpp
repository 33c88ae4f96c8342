// The machine that a report of `epistle doctor --json` is of.
#pragma once

#include <optional>
#include <string>

#include "topology/cluster.hpp"

namespace epistle::cli {

/// Nothing where `file` is no such report. Throws kCorruptInput that names file and field where it is one and cannot be
/// right, kNotFound where there is no such file.
[[nodiscard]] std::optional<Cluster> hardware_of_report(const std::string& file);

}  // namespace epistle::cli
