// epistle simulate: tokens routed over a described cluster, and what that moves and takes.
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "commands.hpp"
#include "output.hpp"
#include "report/progress.hpp"
#include "simulate_options.hpp"
#include "simulate_report.hpp"

namespace epistle::cli {
namespace {

void run_simulation(const SimulateOptions& options) {
  options.targets.check();
  const simulate::SimulateRequest request = make_simulate_request(options);
  std::vector<MeasurementTable> tables;
  for (const std::string& file : options.measurements) tables.push_back(read_measurements(file));
  Progress progress("fitting", options.quiet);
  const Calibration calibration(tables);
  progress.begin("routing tokens");
  const simulate::SimulateResult result = simulate::simulate(
      request, calibration, [&](std::int64_t done, std::int64_t total) { progress.update(done, total); });
  progress.finish();
  const Json document = simulate_json(options, request, result);
  if (!options.targets.json.empty()) write_output(options.targets.json, json_text(document));
  if (!options.targets.html.empty()) write_output(options.targets.html, render_simulation_page(document));
  if (options.targets.leave_stdout()) print(render_simulation(document));
}

}  // namespace

void add_simulate_command(CLI::App& app, int& /*exit_code*/) {
  CLI::App* const command = app.add_subcommand("simulate", "Route tokens over a described cluster and time the layer");
  const auto options = std::make_shared<SimulateOptions>();
  add_simulate_options(*command, *options);
  command->footer(
      "Examples:\n"
      "  epistle simulate --model deepseek-v3 --ranks 64 --routing forced-random\n"
      "  epistle simulate --cluster gb200-nvl72 --ranks 144 --routing zipf:0.8 --dispatchers deepep,hybrid_ep\n"
      "  epistle simulate --routing trace:routing.jsonl.gz --tokens 256 --steps 20 --policy incremental --slots 72");
  command->callback([options] { run_simulation(*options); });
}

}  // namespace epistle::cli
