// The page of epistle plan.
#include <algorithm>
#include <array>
#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "page_parts.hpp"
#include "plan_report.hpp"
#include "report/format.hpp"

namespace epistle::cli {
namespace {

constexpr double kPageUsPerMs = 1000.0;
constexpr double kBytesPerGb = 1e9;

/// The first plan of every EP: feasible ones stand before the others.
std::map<std::int32_t, const Plan*> first_by_ranks(const std::vector<Plan>& plans) {
  std::map<std::int32_t, const Plan*> first;
  for (const Plan& plan : plans) first.emplace(plan.choice.num_ranks, &plan);
  return first;
}

html::ChartBlock steps_by_ranks(const std::map<std::int32_t, const Plan*>& plans) {
  html::ChartBlock chart{.kind = html::ChartKind::kLine,
                         .title = "Time of a step by EP",
                         .summary =
                             "The best plan of every number of ranks with its 90% interval; where none is "
                             "feasible, the one that is nearest to it.",
                         .label_title = "EP",
                         .value_title = "milliseconds",
                         .labels = {},
                         .series = {{.name = "feasible", .values = {}}, {.name = "not feasible", .values = {}}}};
  for (const auto& [ranks, plan] : plans) {
    chart.labels.push_back(std::to_string(ranks));
    const std::size_t mine = plan->refusals.empty() ? 0 : 1;
    for (std::size_t idx = 0; idx < chart.series.size(); ++idx) {
      html::Series& series = chart.series[idx];
      const bool is_mine = idx == mine;
      const auto ms = [is_mine](double us) {
        return is_mine ? std::optional<double>(us / kPageUsPerMs) : std::nullopt;
      };
      series.values.push_back(ms(plan->step_us));
      series.low.push_back(ms(plan->step_low_us));
      series.high.push_back(ms(plan->step_high_us));
    }
  }
  return chart;
}

html::ChartBlock layers_by_ranks(const std::map<std::int32_t, const Plan*>& plans) {
  html::ChartBlock chart{.kind = html::ChartKind::kStackedBars,
                         .title = "Parts of a layer by EP",
                         .summary =
                             "Terms of a layer with experts, in the best plan of every number of ranks. What two "
                             "batches hide is not taken off.",
                         .label_title = "plan",
                         .value_title = "microseconds",
                         .labels = {},
                         .series = {}};
  for (const auto& [ranks, plan] : plans) {
    for (const PlanTerm& term : plan->terms) {
      const bool known = std::any_of(chart.series.begin(), chart.series.end(),
                                     [&](const html::Series& series) { return series.name == term.name; });
      if (!known) chart.series.push_back({.name = std::string(term.name), .values = {}});
    }
  }
  for (const auto& [ranks, plan] : plans) {
    chart.labels.push_back(plan->choice.name());
    for (html::Series& series : chart.series) {
      double us = 0.0;
      for (const PlanTerm& term : plan->terms) us += term.name == series.name ? term.us : 0.0;
      series.values.emplace_back(us);
    }
  }
  return chart;
}

html::ChartBlock memory_by_ranks(const std::map<std::int32_t, const Plan*>& plans) {
  using Part = std::pair<const char*, double MemoryLedger::*>;
  constexpr std::array kParts = {Part{"expert weights", &MemoryLedger::expert_weights},
                                 Part{"other weights", &MemoryLedger::other_weights},
                                 Part{"KV cache or activations", &MemoryLedger::kv_cache},
                                 Part{"exchange buffers", &MemoryLedger::exchange_buffers},
                                 Part{"workspace", &MemoryLedger::workspace},
                                 Part{"reserve", &MemoryLedger::reserve}};
  html::ChartBlock chart{
      .kind = html::ChartKind::kStackedBars,
      .title = "Memory of a GPU by EP",
      .summary = fmt::format("The ledger of the best plan of every number of ranks; {:.1f} GB may be "
                             "used.",
                             plans.begin()->second->memory.limit / kBytesPerGb),
      .label_title = "EP",
      .value_title = "GB",
      .labels = {},
      .series = {}};
  for (const auto& [name, part] : kParts) {
    html::Series series{.name = name, .values = {}};
    for (const auto& [ranks, plan] : plans) series.values.emplace_back(plan->memory.*part / kBytesPerGb);
    chart.series.push_back(std::move(series));
  }
  for (const auto& [ranks, plan] : plans) chart.labels.push_back(std::to_string(ranks));
  return chart;
}

html::ChartBlock flip_chart(const std::vector<FlipCell>& cells) {
  html::ChartBlock chart{.kind = html::ChartKind::kHeatMap,
                         .title = "Best EP where things are otherwise",
                         .summary =
                             "EP of the best plan by tokens of a step (columns) and bandwidth of the network "
                             "(rows), as factors of what was asked for; nothing where no plan fits.",
                         .label_title = "tokens",
                         .value_title = "EP",
                         .labels = {},
                         .series = {}};
  for (const FlipCell& cell : cells) {
    const std::string row = fmt::format("network x {}", cell.network_factor);
    if (chart.series.empty() || chart.series.back().name != row) chart.series.push_back({.name = row, .values = {}});
    if (chart.series.size() == 1) chart.labels.push_back(fmt::format("tokens x {}", cell.tokens_factor));
    chart.series.back().values.push_back(cell.num_ranks > 0 ? std::optional<double>(cell.num_ranks) : std::nullopt);
  }
  return chart;
}

html::TableBlock plan_table(const std::vector<Plan>& plans) {
  constexpr std::size_t kMostPlans = 20;
  html::TableBlock table{.title = "Plans",
                         .columns = {{"plan"},
                                     {"step", Align::kRight},
                                     {"low", Align::kRight},
                                     {"high", Align::kRight},
                                     {"tokens/s/GPU", Align::kRight},
                                     {"memory", Align::kRight},
                                     {"bound by"},
                                     {"why not"}},
                         .rows = {},
                         .note = fmt::format("The first {} of {}.", std::min(kMostPlans, plans.size()), plans.size())};
  for (std::size_t idx = 0; idx < std::min(kMostPlans, plans.size()); ++idx) {
    const Plan& plan = plans[idx];
    table.rows.push_back(
        {{.text = plan.choice.name()},
         us_cell(plan.step_us),
         us_cell(plan.step_low_us),
         us_cell(plan.step_high_us),
         count_cell(plan.tokens_per_s_per_gpu),
         {.text = fmt::format("{:.1f} GB", plan.memory.total() / kBytesPerGb), .number = plan.memory.total()},
         {.text = std::string(to_string(plan.binding))},
         {.text = plan.refusals.empty() ? "-" : plan.refusals.front()}});
  }
  return table;
}

html::TableBlock flip_table(const std::vector<PlanFlip>& flips) {
  html::TableBlock table{.title = "If things were otherwise",
                         .columns = {{"assumption"}, {"best plan"}, {"step", Align::kRight}, {"flips"}},
                         .rows = {}};
  for (const PlanFlip& flip : flips) {
    table.rows.push_back({{.text = flip.assumption},
                          {.text = flip.best},
                          flip.step_us > 0 ? us_cell(flip.step_us) : html::Cell{.text = "-"},
                          {.text = flip.flips ? "yes" : "no"}});
  }
  return table;
}

}  // namespace

std::string render_plan_page(const PlanReport& report) {
  const PlanRequest& request = *report.request;
  html::Page page("epistle plan", fmt::format("{} on {}: {} experts, top {}", request.model.name, request.cluster.name,
                                              request.model.num_experts, request.model.top_k));
  const bool fits = !report.plans.empty() && report.plans.front().refusals.empty();
  page.add(html::NoteBlock{
      .text = fits ? fmt::format("Best: {}.", report.plans.front().choice.name()) : std::string("No plan is feasible."),
      .tone = fits ? html::Tone::kGood : html::Tone::kBad});
  page.add_section("Times");
  const auto plans = first_by_ranks(report.plans);
  if (!plans.empty()) {
    page.add(steps_by_ranks(plans));
    page.add(layers_by_ranks(plans));
    page.add_section("Memory");
    page.add(memory_by_ranks(plans));
  }
  page.add_section("Plans");
  page.add(plan_table(report.plans));
  if (!report.flip_map.empty()) {
    page.add_section("Where the choice changes");
    page.add(flip_chart(report.flip_map));
    page.add(flip_table(report.flips));
  }
  page.set_record(json_text(plan_report_json(report)));
  return page.render();
}

}  // namespace epistle::cli
