#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "plan/exchange_modes.hpp"
#include "simulate_report.hpp"

namespace epistle::cli {
namespace {

Json exchange_json(const simulate::ExchangeLoad& load) {
  const simulate::BusiestLink& link = load.busiest_link;
  return {{"us", load.us},
          {"low_us", load.low_us},
          {"high_us", load.high_us},
          {"mean_us", load.mean_us},
          {"slowest_rank", load.slowest_rank},
          {"self_bytes", load.self_bytes},
          {"domain_bytes", load.domain_bytes},
          {"network_bytes", load.network_bytes},
          {"other_rail_bytes", load.other_rail_bytes},
          {"rail_bytes", load.rail_bytes},
          {"busiest_link",
           {{"link", simulate::to_string(link.kind)}, {"rank", link.rank}, {"bytes", link.bytes}, {"us", link.us}}}};
}

Json mode_json(const simulate::ModeStep& step) {
  Json json = {{"name", step.mode->name},
               {"possible", !step.refusal.has_value()},
               {"only_a_bound", step.mode->kind == ExchangeKind::kFused}};
  if (step.refusal) {
    json["why_not"] = *step.refusal;
    return json;
  }
  json["sms"] = step.num_sms;
  json["dispatch"] = exchange_json(step.dispatch);
  json["combine"] = exchange_json(step.combine);
  json["grouped_gemm"] = {{"us", step.gemm.us},
                          {"low_us", step.gemm.low_us},
                          {"high_us", step.gemm.high_us},
                          {"mean_us", step.gemm.mean_us},
                          {"slowest_rank", step.gemm.slowest_rank}};
  json["layer_us"] = step.layer_us;
  json["layer_low_us"] = step.layer_low_us;
  json["layer_high_us"] = step.layer_high_us;
  json["straggler_factor"] = step.straggler_factor;
  return json;
}

Json closed_json(const std::optional<simulate::ClosedForms>& forms) {
  if (!forms) return nullptr;
  return {{"distinct_ranks", forms->distinct_ranks},
          {"distinct_domains", forms->distinct_domains},
          {"busiest_rank_factor", forms->busiest_rank_factor}};
}

Json step_json(const simulate::StepResult& step) {
  Json modes = Json::array();
  for (const simulate::ModeStep& mode : step.modes) modes.push_back(mode_json(mode));
  return {{"step", step.step},
          {"tokens", step.num_tokens},
          {"assignments", step.num_assignments},
          {"distinct_ranks", step.distinct_ranks},
          {"distinct_domains", step.distinct_domains},
          {"busiest_rank", step.busiest_rank},
          {"busiest_rank_factor", step.busiest_rank_factor},
          {"closed_forms", closed_json(step.closed_forms)},
          {"copies",
           {{"num_copies", step.copies.num_copies},
            {"bytes", step.copies.bytes},
            {"bytes_across_domains", step.copies.bytes_across_domains},
            {"plan_us", step.copies.plan_us}}},
          {"dispatchers", modes}};
}

Json rank_json(std::size_t rank, const simulate::RankRows& rows) {
  return {{"rank", rank},
          {"num_tokens", rows.num_tokens},
          {"sent_rows", rows.sent_rows},
          {"sent_remote_rows", rows.sent_remote_rows},
          {"received_rows", rows.received_rows},
          {"received_remote_rows", rows.received_remote_rows},
          {"sent_remote_assignments", rows.sent_remote_assignments},
          {"assignments", rows.assignments}};
}

}  // namespace

Json simulate_json(const SimulateOptions& options, const simulate::SimulateRequest& request,
                   const simulate::SimulateResult& result) {
  Json steps = Json::array();
  for (const simulate::StepResult& step : result.steps) steps.push_back(step_json(step));
  Json ranks = Json::array();
  for (std::size_t rank = 0; rank < result.ranks.size(); ++rank) ranks.push_back(rank_json(rank, result.ranks[rank]));
  Json placement = Json::array();
  for (std::int32_t rank = 0; rank < result.placement.num_ranks(); ++rank) {
    const auto experts = result.placement.experts_of(rank);
    placement.push_back(std::vector<std::int32_t>(experts.begin(), experts.end()));
  }
  return {{"tool", "epistle simulate"},
          {"cluster", request.cluster.name},
          {"ranks", result.grid.num_ranks},
          {"domains", result.grid.num_domains()},
          {"ranks_per_domain", result.grid.ranks_per_domain},
          {"nics_per_domain", request.cluster.nics_per_domain()},
          {"rails", request.cluster.num_rails()},
          {"experts", result.num_experts},
          {"top_k", result.top_k},
          {"slots", result.num_slots},
          {"hidden", request.hidden},
          {"expert_ffn", request.expert_ffn},
          {"precision", to_string(request.precision)},
          {"tokens_per_rank", request.tokens.tokens_per_rank},
          {"routing", request.tokens.routing.to_string()},
          {"seed", request.tokens.seed},
          {"drift", request.tokens.drift},
          {"policy", options.policy},
          {"measurements", options.measurements},
          {"steps", steps},
          {"last_ranks", ranks},
          {"last_placement", placement}};
}

}  // namespace epistle::cli
