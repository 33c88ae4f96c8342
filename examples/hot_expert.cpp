// An expert is hot, and gets copies. Half of all tokens go to expert 0, so its rank has most of the work; from the next
// step on every rank has a copy of it, and the tokens are shared out. What comes back has the same bits.
//
// The experts are functions here, which any rank can compute. Real ones have weights, which must be in their slots
// before a placement is set; epistle/migration.hpp moves them while steps go on.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "epistle/dispatcher.hpp"
#include "epistle/routing.hpp"

namespace {

constexpr int kRanks = 4;
constexpr std::int32_t kExpertsPerRank = 4;
constexpr std::int32_t kTopK = 2;
constexpr std::int64_t kTokens = 64;
constexpr std::int64_t kHidden = 8;

using Values = std::vector<float>;

epistle::Rows rows_of(Values& values) {
  return {.data = values.data(), .num_rows = kTokens, .hidden = kHidden, .dtype = epistle::DType::kFp32};
}

// Expert 0 has a slot on every rank, the others one as before. Slots of a rank are in the order in which they stand
// here.
epistle::Placement with_copies() {
  std::vector<std::vector<std::int32_t>> slot_experts(kRanks);
  for (std::int32_t expert = 0; expert < kRanks * kExpertsPerRank; ++expert) {
    slot_experts[static_cast<std::size_t>(expert / kExpertsPerRank)].push_back(expert);
  }
  for (std::size_t rank = 1; rank < slot_experts.size(); ++rank) slot_experts[rank].push_back(0);
  return {kRanks * kExpertsPerRank, slot_experts, /*generation=*/1};
}

// Which expert of the model a local one is.
std::int32_t expert_of(const epistle::Dispatcher& moe, int rank, std::int32_t local_expert) {
  const epistle::Placement& placement = moe.placement();
  if (placement.is_trivial()) return rank * kExpertsPerRank + local_expert;
  return placement.experts_of(rank)[static_cast<std::size_t>(local_expert)];
}

// One step. Expert e multiplies by e + 1. Returns how many rows this rank has computed.
std::int64_t run_step(epistle::Dispatcher& moe, int rank, const epistle::RoutingTable& routing, Values& result) {
  Values tokens(static_cast<std::size_t>(kTokens * kHidden));
  for (std::size_t idx = 0; idx < tokens.size(); ++idx) tokens[idx] = static_cast<float>(idx % 251);
  const epistle::Received in =
      moe.dispatch({.expert_ids = routing.ids(), .weights = routing.probs(), .tokens = rows_of(tokens)});
  std::int64_t num_rows = 0;
  const auto* inputs = static_cast<const float*>(in.rows().data);
  auto* outputs = static_cast<float*>(in.expert_outputs().data);
  for (std::int32_t local = 0; local < in.description().num_local_experts; ++local) {
    const auto factor = static_cast<float>(expert_of(moe, rank, local) + 1);
    const std::int64_t begin = std::int64_t{in.expert_begin()[local]} * kHidden;
    const std::int64_t end = begin + std::int64_t{in.expert_counts()[local]} * kHidden;
    std::transform(inputs + begin, inputs + end, outputs + begin, [factor](float value) { return factor * value; });
    num_rows += in.expert_counts()[local];
  }
  moe.combine({.received = in, .out = rows_of(result)});
  return num_rows;
}

// Returns true where the sums stayed as they were, and nobody has more than the busiest rank had.
bool run_rank(epistle::Group& group) {
  epistle::Dispatcher moe(group, "direct",
                          {.hidden = kHidden,
                           .num_experts = kRanks * kExpertsPerRank,
                           .top_k = kTopK,
                           .max_tokens = kTokens,
                           .input = epistle::DType::kFp32,
                           .layout = epistle::ExpertMajor{},
                           .order = epistle::SumOrder::kFlat,        // the same bits wherever experts are
                           .slots_per_rank = kExpertsPerRank + 1});  // room for one copy on every rank
  epistle::RoutingTable routing =
      epistle::generate_routing(epistle::RoutingSpec::parse("uniform"), {.num_tokens = kTokens,
                                                                         .num_experts = kRanks * kExpertsPerRank,
                                                                         .top_k = kTopK,
                                                                         .rank = group.rank(),
                                                                         .num_ranks = group.size()});
  for (std::size_t first = 0; first < routing.expert_ids.size(); first += 2 * kTopK) {
    if (routing.expert_ids[first + 1] != 0) routing.expert_ids[first] = 0;
  }

  Values before(static_cast<std::size_t>(kTokens * kHidden));
  Values after(before.size());
  const std::int64_t rows_before = run_step(moe, group.rank(), routing, before);
  moe.set_placement(with_copies());  // on all ranks before the same step
  const std::int64_t rows_after = run_step(moe, group.rank(), routing, after);

  std::vector<std::int64_t> most{rows_before, rows_after};
  std::vector<std::int64_t> of_all(most.size() * kRanks);
  group.all_gather(most.data(), most.size() * sizeof(std::int64_t), of_all.data());
  for (std::size_t idx = 0; idx < of_all.size(); ++idx) most[idx % 2] = std::max(most[idx % 2], of_all[idx]);
  if (group.rank() == 0) {
    std::printf("rows of the busiest rank: %lld, then %lld\n", static_cast<long long>(most[0]),
                static_cast<long long>(most[1]));
  }
  return before == after && most[1] < most[0];
}

}  // namespace

int main() {
  try {
    std::atomic<int> num_wrong{0};
    epistle::run_thread_ranks(kRanks, [&](epistle::Group& group) {
      if (!run_rank(group)) ++num_wrong;
    });
    return num_wrong == 0 ? 0 : 1;
  } catch (const epistle::Error& error) {
    std::fprintf(stderr, "hot_expert: %s\n", error.what());
    return 1;
  }
}
