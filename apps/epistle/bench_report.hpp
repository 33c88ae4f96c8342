// What `epistle bench` prints, as a table and as JSON.
#pragma once

#include <string>

#include "bench_plan.hpp"
#include "json_text.hpp"
#include "measure/bench_types.hpp"

namespace epistle::cli {

[[nodiscard]] std::string render_bench_table(const BenchPlan& plan, const BenchResult& result);
[[nodiscard]] Json bench_json(const BenchPlan& plan, const BenchResult& result);

/// One line: whether every output bit was checked, and equal.
[[nodiscard]] std::string verification_line(const BenchPlan& plan, const BenchResult& result);

}  // namespace epistle::cli
