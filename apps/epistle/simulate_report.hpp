// What epistle simulate prints and writes.
#pragma once

#include <string>

#include "json_text.hpp"
#include "simulate_options.hpp"

namespace epistle::cli {

[[nodiscard]] Json simulate_json(const SimulateOptions& options, const simulate::SimulateRequest& request,
                                 const simulate::SimulateResult& result);

/// The same for a terminal.
[[nodiscard]] std::string render_simulation(const Json& document);

/// The same as a page with charts.
[[nodiscard]] std::string render_simulation_page(const Json& document);

}  // namespace epistle::cli
