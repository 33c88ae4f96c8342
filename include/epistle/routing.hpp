// Routing tables: which experts each token goes to, and how tables are made.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "epistle/export.hpp"
#include "epistle/types.hpp"
#include "epistle/views.hpp"

namespace epistle {

/// An owning routing table of one rank: ids [num_tokens, top_k] and weights [num_tokens, top_k], row-major.
struct RoutingTable {
  std::int64_t num_tokens = 0;
  std::int32_t num_experts = 0;
  std::int32_t top_k = 0;
  std::vector<std::int32_t> expert_ids;
  std::vector<float> weights;

  [[nodiscard]] IdsView ids() const noexcept { return {expert_ids.data(), num_tokens, top_k}; }
  /// `weights` as a view.
  [[nodiscard]] WeightsView probs() const noexcept { return {weights.data()}; }
};

enum class RoutingKind : std::int32_t {
  kUniform,       ///< top_k distinct experts, every set equally likely
  kBalanced,      ///< exact round robin: over all tokens of all ranks, which must have equally many, the expert
                  ///< counts differ by at most one
  kForcedRandom,  ///< Megatron-style forced load balancing: random scores, then top-k (balanced in expectation only);
                  ///< group-limited where the model limits groups
  kZipf,          ///< expert popularity i^-A over a seeded shuffle of the experts, drawn without replacement
  kLognormal,     ///< expert popularity exp(S * z), z standard normal, drawn without replacement
  kTrace,         ///< recorded routing from a trace file
};

/// What to generate: the text form is `uniform`, `balanced`, `forced-random`, `zipf:A`, `lognormal:S`, `trace:FILE`.
struct EPISTLE_API RoutingSpec {
  RoutingKind kind = RoutingKind::kUniform;
  double parameter = 0.0;  ///< A of zipf, S of lognormal
  std::string trace_path = {};

  /// Throws Error(kInvalidArgument) that names the accepted forms.
  [[nodiscard]] static RoutingSpec parse(std::string_view text);
  [[nodiscard]] std::string to_string() const;
};

struct RoutingRequest {
  std::int64_t num_tokens = 0;  ///< tokens of this rank
  std::int32_t num_experts = 0;
  std::int32_t top_k = 0;
  std::int32_t num_groups = 1;        ///< expert groups of a group-limited router (DeepSeek); 1 = no limit
  std::int32_t groups_per_token = 1;  ///< groups a token may use
  std::int32_t rank = 0;
  std::int32_t num_ranks = 1;
  std::uint64_t seed = 1;
  std::int32_t trace_layer = -1;  ///< layer of a trace; -1 = the first one in the file
};

/// Generates one rank's table. The same request gives the same bits on every machine: random numbers come from
/// Philox4x32-10 keyed by (seed, stream, rank, token), and popularities are rounded to integers before they are drawn
/// from. Weights are positive, descending along a row and sum to 1 up to fp32 rounding (trace: as recorded). kTrace:
/// rank r takes tokens [r*num_tokens, (r+1)*num_tokens) of the layer, wrapping round at its end. Throws
/// kInvalidArgument for impossible requests (top_k > num_experts, ...), kCorruptInput or kNotFound for traces.
[[nodiscard]] EPISTLE_API RoutingTable generate_routing(const RoutingSpec& spec, const RoutingRequest& request);

/// How a group is scored in group-limited top-k.
enum class GroupScore : std::int32_t {
  kMax,     ///< best expert of the group (DeepSeek-V2)
  kTopTwo,  ///< sum of the two best experts of the group (DeepSeek-V3)
};

struct TopKOptions {
  std::int32_t top_k = 1;
  std::int32_t num_groups = 1;
  std::int32_t groups_per_token = 1;
  GroupScore group_score = GroupScore::kTopTwo;
  bool normalize = true;  ///< weights divided by their sum
};

/// Top-k over router scores [num_tokens, num_experts] (row-major, finite), limited to the best `groups_per_token` of
/// `num_groups` equal groups. Ties go to the lower expert or group id. Weights are the scores of the chosen experts,
/// in descending order. num_experts must be divisible by num_groups, and top_k must fit into the groups kept.
[[nodiscard]] EPISTLE_API RoutingTable group_limited_top_k(std::span<const float> scores, std::int64_t num_tokens,
                                                           std::int32_t num_experts, const TopKOptions& options);

enum class DropPolicy : std::int32_t {
  kProbability,  ///< keep the assignments of highest weight (ties: earlier token)
  kPosition,     ///< keep the assignments of the earliest tokens
};

struct CapacityOptions {
  double factor = 1.0;  ///< > 0
  DropPolicy policy = DropPolicy::kProbability;
  bool pad = false;  ///< report the padding that fills every expert up to the capacity
};

struct CapacityResult {
  std::int64_t capacity = 0;  ///< rows an expert may take from this rank: ceil(tokens * top_k / experts * factor)
  std::int64_t dropped = 0;   ///< assignments set to kNoExpert
  std::vector<std::int64_t> dropped_per_expert;  ///< [num_experts]
  std::vector<std::int64_t> padding_per_expert;  ///< [num_experts]; rows missing to the capacity; zeros without `pad`
};

/// Applies a capacity factor to one rank's table in place (Megatron's moe_expert_capacity_factor). Dropped entries
/// become kNoExpert with weight 0; other entries keep their place. NaN weights rank below every number.
EPISTLE_API CapacityResult apply_capacity(RoutingTable& table, const CapacityOptions& options);

}  // namespace epistle
