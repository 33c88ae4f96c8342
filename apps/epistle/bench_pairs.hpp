// What `epistle bench` prints of pairs in a row: chains, and replays of a graph.
#pragma once

#include <string>

#include "json_text.hpp"
#include "measure/bench_types.hpp"

namespace epistle::cli {

/// A table, and what it shows; empty where neither chains nor replays were asked for.
[[nodiscard]] std::string render_pairs_table(const BenchResult& result);

// One object for each dispatcher and way to launch; null where not asked for.

[[nodiscard]] Json chains_json(const BenchResult& result);
[[nodiscard]] Json replays_json(const BenchResult& result);

}  // namespace epistle::cli
