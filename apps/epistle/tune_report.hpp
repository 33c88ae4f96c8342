// What `epistle tune` found: as a profile, a table and a page.
#pragma once

#include <string>

#include "json_text.hpp"
#include "tune_run.hpp"

namespace epistle::cli {

/// The profile, with all that it comes from.
[[nodiscard]] Json tune_json(const BenchPlan& plan, const TuneResult& result, TunePolicy policy);

[[nodiscard]] std::string render_tune_table(const Json& document);
[[nodiscard]] std::string render_tune_page(const Json& document);

}  // namespace epistle::cli
