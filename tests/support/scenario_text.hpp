// A scenario as text, so that a failing one can be written down as a test.
#pragma once

#include <string>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "support/scenario.hpp"

namespace epistle::testing {

inline std::string to_text(const Scenario& scenario) {
  const DispatcherConfig& config = scenario.config;
  return fmt::format(
      "tokens_per_rank {{{}}}, seed {}, missing {}, hot {}, odd {}, ids {}, stage_combine {}, rounds {}; hidden {}, "
      "dtype {}, raw_scale_bytes {}, experts {}, top_k {}, max_tokens {}, layout {}, alignment {}, sizing {}, "
      "capacity_rows {}, overflow {}, combine {}, weights {}, combine_dtype {}, combine_hidden {}, workers {}",
      fmt::join(scenario.tokens_per_rank, ", "), scenario.seed, scenario.missing_probability, scenario.hot_experts,
      scenario.odd_values, scenario.id_type == IdType::kInt32 ? "int32" : "int64", scenario.stage_combine,
      scenario.num_rounds, config.hidden, to_string(config.dtype), config.raw_scale_bytes, config.num_experts,
      config.top_k, config.max_tokens, to_string(config.layout), config.alignment, to_string(config.sizing),
      config.capacity_rows, to_string(config.overflow), to_string(config.combine), config.apply_weights,
      to_string(config.combine_dtype), config.combine_hidden, config.num_workers);
}

}  // namespace epistle::testing
