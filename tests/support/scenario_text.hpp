// A scenario as text, so that a failing one can be written down as a test.
#pragma once

#include <string>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "dispatch/call/resolved_config.hpp"
#include "support/scenario.hpp"

namespace epistle::testing {

inline std::string to_text(const Scenario& scenario) {
  const ResolvedConfig config = resolve_config(scenario.config, scenario.num_ranks(), scenario.domain_size);
  std::string text = fmt::format(
      "tokens_per_rank {{{}}}, seed {}, missing {}, hot {}, odd {}, ids {}, stage_combine {}, rounds {}, workers {}, "
      "strided {}, counted {}, domains of {}; ",
      fmt::join(scenario.tokens_per_rank, ", "), scenario.seed, scenario.missing_probability, scenario.hot_experts,
      scenario.odd_values, scenario.id_type == IdType::kInt32 ? "int32" : "int64", scenario.stage_combine,
      scenario.num_rounds, scenario.num_workers, scenario.strided, scenario.counted, config.domain_size);
  text += fmt::format(
      "hidden {}, input {}, raw_scale_bytes {}, experts {}, top_k {}, max_tokens {}, layout {}, alignment {}, sizing "
      "{}, capacity rows {}, overflow {}, order {}, weights {}, expert_output {}, expert_output_hidden {}, buffers {}",
      config.hidden, to_string(config.dtype), config.raw_scale_bytes, config.num_experts, config.top_k,
      config.max_tokens, to_string(config.layout), config.alignment, to_string(config.sizing), config.capacity_rows,
      to_string(config.overflow), to_string(config.order), config.apply_weights, to_string(config.combine_dtype),
      config.combine_hidden, config.num_buffers);
  if (config.quantises) {
    text += fmt::format(", wire fp8 with scales {}, powers_of_two {}, order {}", to_string(config.quantised.scales),
                        config.quantised.powers_of_two, to_string(config.quantised.order));
  }
  if (scenario.placement_seed != 0) {
    text += fmt::format(", placements of seed {}{}, step_seed {}", scenario.placement_seed,
                        scenario.placed_later ? " from the second round on" : "",
                        scenario.seed_in_memory ? "in memory" : "as a value");
  }
  return text;
}

}  // namespace epistle::testing
