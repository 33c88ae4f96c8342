#include "balance_report.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "report/format.hpp"
#include "report/table.hpp"

namespace epistle::cli {
namespace {

/// Results of one policy.
struct PolicySummary {
  std::string policy;
  std::string replica_choice;
  std::int64_t num_layers = 0;
  double balancedness = 0.0;  // mean over the layers
  double worst = 1.0;         // of a layer
  double bound = 0.0;
  double plan_us = 0.0;
  double near_share = 0.0;
  std::int64_t num_copies = 0;  // of all layers
  std::int64_t bytes = 0;
  std::int64_t bytes_across_domains = 0;
  std::int64_t num_reasons = 0;  // layers that have one
  std::vector<std::string> reasons;
};

std::vector<PolicySummary> summarize_policies(const BalanceReport& report) {
  std::vector<PolicySummary> summaries;
  for (const balance::ReplayResult& result : report.results) {
    const std::string policy(to_string(result.policy));
    if (summaries.empty() || summaries.back().policy != policy) {
      summaries.emplace_back();
      summaries.back().policy = policy;
    }
    PolicySummary& summary = summaries.back();
    summary.replica_choice = to_string(result.replica_choice);
    ++summary.num_layers;
    summary.balancedness += result.balancedness;
    summary.worst = std::min(summary.worst, result.balancedness);
    summary.bound += result.bound;
    summary.plan_us += result.plan_us;
    summary.near_share += result.near_share;
    summary.num_copies += result.num_copies;
    summary.bytes += result.bytes;
    summary.bytes_across_domains += result.bytes_across_domains;
    if (!result.reason.empty()) ++summary.num_reasons;
    if (!result.reason.empty() &&
        std::find(summary.reasons.begin(), summary.reasons.end(), result.reason) == summary.reasons.end()) {
      summary.reasons.push_back(result.reason);
    }
  }
  for (PolicySummary& summary : summaries) {
    const auto num_layers = static_cast<double>(summary.num_layers);
    summary.balancedness /= num_layers;
    summary.bound /= num_layers;
    summary.plan_us /= num_layers;
    summary.near_share /= num_layers;
  }
  return summaries;
}

std::vector<std::vector<std::int32_t>> by_rank(const balance::SlotTable& table) {
  std::vector<std::vector<std::int32_t>> ranks;
  for (std::int32_t rank = 0; rank < table.num_ranks(); ++rank) {
    const auto experts = table.experts_of(rank);
    ranks.emplace_back(experts.begin(), experts.end());
  }
  return ranks;
}

Json to_json(const balance::ReplayResult& result) {
  Json json = {{"policy", to_string(result.policy)},
               {"layer", result.layer},
               {"balancedness", result.balancedness},
               {"bound", result.bound},
               {"copies", result.num_copies},
               {"bytes", result.bytes},
               {"plan_us", result.plan_us},
               {"replica_choice", to_string(result.replica_choice)},
               {"worst", result.worst},
               {"bytes_across_domains", result.bytes_across_domains},
               {"batches", result.batches},
               {"batch_bounds", result.batch_bounds},
               {"rank_loads", result.rank_loads},
               {"rank_loads_before", result.rank_loads_before},
               {"placement", by_rank(result.placement)}};
  if (result.is_foretold) json["foretold"] = true;
  if (result.near_share > 0.0) json["near_share"] = result.near_share;
  if (!result.quotas.empty()) json["quotas"] = result.quotas;
  if (!result.reason.empty()) json["reason"] = result.reason;
  return json;
}

}  // namespace

std::string render_balance(const BalanceReport& report, const BalanceOptions& options) {
  const std::vector<PolicySummary> summaries = summarize_policies(report);
  const bool has_domains = report.cluster.num_domains() > 1;
  std::vector<Column> columns = {{"policy", Align::kLeft},        {"replicas by", Align::kLeft},
                                 {"balancedness", Align::kRight}, {"worst layer", Align::kRight},
                                 {"bound", Align::kRight},        {"copies", Align::kRight},
                                 {"of slots", Align::kRight},     {"copied", Align::kRight}};
  if (has_domains) columns.push_back({"across domains", Align::kRight});
  if (options.prefers_near) columns.push_back({"stay", Align::kRight});
  columns.push_back({"plan", Align::kRight});
  Table table(columns);
  for (const PolicySummary& summary : summaries) {
    const double num_slots = static_cast<double>(report.cluster.num_slots()) * static_cast<double>(summary.num_layers);
    std::vector<std::string> cells = {summary.policy,
                                      summary.replica_choice,
                                      fmt::format("{:.4f}", summary.balancedness),
                                      fmt::format("{:.4f}", summary.worst),
                                      fmt::format("{:.4f}", summary.bound),
                                      format_count(summary.num_copies),
                                      format_percent(static_cast<double>(summary.num_copies) / num_slots),
                                      format_bytes(summary.bytes)};
    if (has_domains) cells.push_back(format_bytes(summary.bytes_across_domains));
    if (options.prefers_near) cells.push_back(summary.near_share > 0.0 ? format_percent(summary.near_share) : "-");
    cells.push_back(summary.plan_us > 0.0 ? format_us(summary.plan_us) : "-");
    table.add_row(cells);
  }
  std::string text = fmt::format(
      "{}: {} layers, {} ranks, {} slots{}\n\n{}", report.source, summaries.empty() ? 0 : summaries.front().num_layers,
      report.cluster.num_ranks(), report.cluster.num_slots(),
      has_domains ? fmt::format(", {} domains", report.cluster.num_domains()) : "", table.render());
  for (const PolicySummary& summary : summaries) {
    // One reason for all layers is worth a line; many are in the JSON.
    if (summary.reasons.size() == 1 && summary.num_reasons == summary.num_layers)
      text += fmt::format("\n{}: {}\n", summary.policy, summary.reasons.front());
  }
  if (!report.no_eplb.empty()) text += fmt::format("\neplb: left out: {}\n", report.no_eplb);
  return text;
}

Json balance_json(const BalanceReport& report, const BalanceOptions& options) {
  Json results = Json::array();
  for (const balance::ReplayResult& result : report.results) results.push_back(to_json(result));
  Json summary = Json::array();
  for (const PolicySummary& policy : summarize_policies(report)) {
    summary.push_back({{"policy", policy.policy},
                       {"layers", policy.num_layers},
                       {"balancedness", policy.balancedness},
                       {"worst", policy.worst},
                       {"bound", policy.bound},
                       {"copies", policy.num_copies},
                       {"bytes", policy.bytes},
                       {"bytes_across_domains", policy.bytes_across_domains},
                       {"plan_us", policy.plan_us},
                       {"replica_choice", policy.replica_choice}});
  }
  Json json = {{"source", report.source},
               {"ranks", report.cluster.num_ranks()},
               {"slots", report.cluster.slots_of_rank},
               {"domains", report.cluster.num_domains()},
               {"objective", options.objective},
               {"bytes_per_expert", options.expert_bytes}};
  if (options.loads_path.empty()) {
    json["batch"] = options.batch_tokens;
    json["plan_on"] = options.plan_on;
  }
  if (!report.no_eplb.empty()) json["left_out"] = {{{"policy", "eplb"}, {"reason", report.no_eplb}}};
  json["summary"] = summary;
  json["results"] = results;
  return json;
}

}  // namespace epistle::cli
