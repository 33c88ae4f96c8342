// What `epistle bench` prints of pairs in a row: chains, and replays of a graph; and of calls by the host's clock.
#pragma once

#include <string>

#include "json_text.hpp"
#include "measure/bench_types.hpp"

namespace epistle::cli {

/// Tables, and what they show; empty where none of it was asked for.
[[nodiscard]] std::string render_pairs_table(const BenchResult& result);

// One object for each dispatcher and way to launch; null where not asked for.

[[nodiscard]] Json chains_json(const BenchResult& result);
[[nodiscard]] Json replays_json(const BenchResult& result);
[[nodiscard]] Json host_calls_json(const BenchResult& result);

}  // namespace epistle::cli
