// Where simulated tokens come from: a rank's tokens of a step at a time, so that no step is ever held whole.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "epistle/routing.hpp"

#include "cost/recorded_sets.hpp"

namespace epistle::simulate {

struct TokenRules {
  RoutingSpec routing;
  std::int32_t num_experts = 0;  ///< of a trace may be 0: as recorded
  std::int32_t top_k = 0;        ///< likewise
  std::int32_t num_groups = 1;   ///< of the router; only forced-random knows them
  std::int32_t groups_per_token = 1;
  std::int32_t num_ranks = 1;
  std::int64_t tokens_per_rank = 0;
  std::uint64_t seed = 1;
  std::int32_t trace_layer = -1;  ///< -1 = the first of the file
  double drift = 0.0;             ///< part of the experts that take another one's place in every step
};

/// Step 0 of rank r is generate_routing's table of rank r. Later steps go on where it ends: other draws under the same
/// popularities, the next tokens of a trace.
class TokenSource {
 public:
  /// Reads a trace's layer, which is held. Throws as generate_routing does.
  explicit TokenSource(TokenRules rules);

  [[nodiscard]] std::int32_t num_experts() const noexcept { return rules_.num_experts; }
  [[nodiscard]] std::int32_t top_k() const noexcept { return rules_.top_k; }

  /// Steps follow each other from 0 on.
  void begin_step(std::int64_t step);
  /// Experts [tokens_per_rank, top_k] of this step's tokens of `rank`; valid until the next call.
  [[nodiscard]] std::span<const std::int32_t> ids(std::int32_t rank);

  /// Popularity of every expert in this step, from which tokens are drawn one expert after the other; all ones for
  /// uniform routing. None where tokens are not drawn like that (balanced, groups, traces).
  [[nodiscard]] std::optional<std::vector<double>> popularity() const;
  /// Which experts the tokens of a trace use together; null where the routing is no trace.
  [[nodiscard]] const RecordedSets* recorded() const noexcept { return recorded_ ? &*recorded_ : nullptr; }
  /// [num_experts]; whose place each expert of the generator, or of the trace, has taken in this step.
  [[nodiscard]] std::span<const std::int32_t> labels() const noexcept { return label_; }
  /// Whether the router's groups limit what a token gets.
  [[nodiscard]] bool limits_groups() const noexcept;

 private:
  void read_trace();
  void relabel();

  TokenRules rules_;
  std::int64_t step_ = 0;
  std::optional<RecordedSets> recorded_;
  RoutingTable trace_;               // the layer; empty unless the routing is a trace
  std::vector<std::int32_t> label_;  // [num_experts]; whose place an expert has taken
  std::vector<std::int32_t> ids_;
};

}  // namespace epistle::simulate
