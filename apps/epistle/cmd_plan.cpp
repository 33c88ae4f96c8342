// epistle plan: which mix of EP, TP and DP, with which dispatcher, and how sure that is.
#include <algorithm>
#include <charconv>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "epistle/error.hpp"

#include "commands.hpp"
#include "core/reject.hpp"
#include "output.hpp"
#include "plan_options.hpp"
#include "plan_report.hpp"
#include "report/progress.hpp"

namespace epistle::cli {
namespace {

/// A plan by name or by its place in the list.
const Plan& find_plan(const std::vector<Plan>& plans, const std::string& text) {
  std::size_t place = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), place);
  const bool is_place = error == std::errc() && end == text.data() + text.size();
  if (is_place && place >= 1 && place <= plans.size()) return plans[place - 1];
  const auto found =
      std::find_if(plans.begin(), plans.end(), [&](const Plan& plan) { return plan.choice.name() == text; });
  if (found != plans.end()) return *found;
  throw Error(ErrorCode::kNotFound,
              fmt::format("there is no plan '{}'; give a place from 1 to {} or a name such as '{}'", text, plans.size(),
                          plans.empty() ? "ep8-tp1-direct-16sms" : plans.front().choice.name()));
}

void show_plans(const PlanOptions& options) {
  options.targets.check();
  if (!options.explain.empty() && !options.targets.html.empty()) {
    reject("--explain has no page; give --html without it");
  }
  const PlanRequest request = make_plan_request(options);
  std::vector<MeasurementTable> tables;
  for (const std::string& file : options.measurements) tables.push_back(read_measurements(file));
  Progress progress("fitting", options.quiet);
  const Calibration calibration(tables);
  progress.begin("searching");

  PlanReport report{.request = &request,
                    .calibration = &calibration,
                    .plans = search_plans(request, calibration),
                    .flips = {},
                    .flip_map = {},
                    .crossovers = {},
                    .sm_points = {},
                    .measurements = {},
                    .unmeasured = {}};
  const bool wants_json = !options.targets.json.empty();  // of thousands of plans: longer than the search
  Json json;
  std::string text;
  if (!options.explain.empty()) {
    const Plan& first = find_plan(report.plans, options.explain[0]);
    const Plan& second = find_plan(report.plans, options.explain[1]);
    if (wants_json) json = explanation_json(request, first, second);
    text = render_explanation(first, second);
  } else {
    if (!report.plans.empty() && report.plans.front().refusals.empty()) {
      const Plan& best = report.plans.front();
      report.flips = find_flips(request, calibration, best);
      report.crossovers = find_crossovers(request, calibration, best);
      report.sm_points = vary_sms(request, calibration, best);
      if (!options.targets.html.empty()) report.flip_map = map_flips(request, calibration);
      report.measurements = next_measurements(request, calibration, report.plans);
      report.unmeasured = unmeasured_terms(request, best);
    }
    if (wants_json) json = plan_report_json(report);
    text = render_plan_report(report, options.num_shown);
  }
  progress.finish();
  if (wants_json) write_output(options.targets.json, json_text(json));
  if (!options.targets.html.empty()) write_output(options.targets.html, render_plan_page(report));
  if (options.targets.leave_stdout()) print(text);
}

}  // namespace

void add_plan_command(CLI::App& app, int& /*exit_code*/) {
  CLI::App* const command = app.add_subcommand("plan", "Choose EP, TP, DP and dispatcher for a model on a cluster");
  const auto options = std::make_shared<PlanOptions>();
  add_plan_options(*command, *options);
  command->footer(
      "Examples:\n"
      "  epistle plan --model qwen3-235b-a22b --cluster gb200-nvl72 --tokens 64 --max-tpot-ms 50\n"
      "  epistle plan --workload prefill --global-tokens 6000 --explain 1 2\n"
      "  epistle plan --cluster ours.json --measurements direct.json gemm.csv");
  command->callback([options] { show_plans(*options); });
}

}  // namespace epistle::cli
