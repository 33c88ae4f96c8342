// epistle calibrate: constants of the cost curves from measurements, and how well they forecast others.
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "epistle/error.hpp"

#include "commands.hpp"
#include "cost/fit/calibration.hpp"
#include "json_option.hpp"
#include "json_text.hpp"
#include "output.hpp"
#include "report/format.hpp"
#include "report/progress.hpp"
#include "report/table.hpp"

namespace epistle::cli {
namespace {

struct CalibrateOptions {
  std::vector<std::string> fit_files;
  std::vector<std::string> evaluate_files;
  std::string json_target;
  bool quiet = false;
};

/// A file that holds nothing for a curve, or lines of one, and why.
struct LeftOutFile {
  std::string file;
  std::string reason;
};

struct TableSet {
  std::vector<MeasurementTable> tables;
  std::vector<LeftOutFile> left_out;
};

/// A folder of results has records of other things beside those of times: they are named, and the rest is read.
TableSet read_tables(const std::vector<std::string>& files) {
  TableSet set;
  for (const std::string& file : files) {
    try {
      MeasurementTable table = read_measurements(file);
      for (const std::string& reason : table.left_out) set.left_out.push_back({.file = file, .reason = reason});
      set.tables.push_back(std::move(table));
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kUnsupported) throw;
      set.left_out.push_back({.file = file, .reason = std::string(error.message())});
    }
  }
  if (set.tables.empty() && !files.empty()) {
    throw Error(ErrorCode::kUnsupported,
                fmt::format("no file has times of a curve; the first: {}", set.left_out.front().reason));
  }
  return set;
}

Json constant_json(const ConstantFit& constant) {
  return {{"name", constant.name},    {"unit", constant.unit},
          {"value", constant.value},  {"low_90", constant.low},
          {"high_90", constant.high}, {"provenance", constant.identified ? "calibrated" : "prior"}};
}

/// Constants that may vary and that the data leave open: with the measurement that would tell each.
std::vector<const ConstantPrior*> open_constants(const CalibratedCurve& curve) {
  std::vector<const ConstantPrior*> open;
  const std::vector<ConstantFit> fits = curve.constants();
  for (std::size_t idx = 0; idx < fits.size(); ++idx) {
    const ConstantPrior& prior = curve.family().constants[idx];
    if (!fits[idx].identified && prior.factor > 1.0) open.push_back(&prior);
  }
  return open;
}

Json curves_json(const Calibration& calibration) {
  Json curves = Json::array();
  for (const auto& [name, curve] : calibration.curves()) {
    if (curve.observations().empty()) continue;
    Json constants = Json::array();
    for (const ConstantFit& constant : curve.constants()) constants.push_back(constant_json(constant));
    Json not_fitted = Json::array();
    for (const ConstantPrior* const prior : open_constants(curve)) {
      not_fitted.push_back({{"name", prior->name}, {"measure", prior->identified_by}});
    }
    curves.push_back({{"curve", name},
                      {"num_measurements", curve.observations().size()},
                      {"source_of_priors", curve.family().source},
                      {"constants", constants},
                      {"not_fitted", not_fitted}});
  }
  return curves;
}

Json tables_json(const std::vector<TableErrors>& tables) {
  Json list = Json::array();
  for (const TableErrors& errors : tables) {
    list.push_back({{"table", errors.table},
                    {"median_ape", errors.median_ape},
                    {"p90_ape", errors.p90_ape},
                    {"coverage_90", errors.coverage_90},
                    {"num_rows", errors.num_rows},
                    {"num_times", errors.num_times},
                    {"worst",
                     {{"row", errors.worst.label},
                      {"line", errors.worst.line},
                      {"measured_us", errors.worst.measured_us},
                      {"predicted_us", errors.worst.predicted_us},
                      {"ape", errors.worst.ape}}},
                    {"without_measurements", errors.without_measurements}});
  }
  return list;
}

std::string render_curves(const Calibration& calibration) {
  Table table({{"curve", Align::kLeft},
               {"measurements", Align::kRight},
               {"fitted", Align::kRight},
               {"left at the prior", Align::kLeft}});
  std::map<std::string_view, std::string> advice;  // what to measure, and for which curves
  for (const auto& [name, curve] : calibration.curves()) {
    if (curve.observations().empty()) continue;
    std::string open_names;
    for (const ConstantPrior* const prior : open_constants(curve)) {
      open_names += (open_names.empty() ? "" : ", ") + std::string(prior->name);
      std::string& curves = advice[prior->identified_by];
      if (!curves.ends_with(name)) curves += (curves.empty() ? "" : ", ") + name;
    }
    std::size_t num_fitted = 0;
    for (const ConstantFit& constant : curve.constants()) num_fitted += constant.identified ? 1 : 0;
    table.add_row({name, format_count(static_cast<std::int64_t>(curve.observations().size())),
                   std::to_string(num_fitted), open_names.empty() ? "-" : open_names});
  }
  std::string text = table.render();
  if (!advice.empty()) text += "\nConstants that the measurements do not tell are not fitted. What would tell them:\n";
  for (const auto& [measurement, curves] : advice) text += fmt::format("  {}: {}\n", measurement, curves);
  return text;
}

std::string render_errors(const std::vector<TableErrors>& tables) {
  Table table({{"table", Align::kLeft},
               {"rows", Align::kRight},
               {"median error", Align::kRight},
               {"90% below", Align::kRight},
               {"in 90% interval", Align::kRight},
               {"worst", Align::kLeft}});
  std::string notes;
  for (const TableErrors& errors : tables) {
    table.add_row({errors.table, format_count(static_cast<std::int64_t>(errors.num_rows)),
                   format_percent(errors.median_ape / 100), format_percent(errors.p90_ape / 100),
                   format_percent(errors.coverage_90),
                   fmt::format("{}: {} measured, {} predicted", errors.worst.label, format_us(errors.worst.measured_us),
                               format_us(errors.worst.predicted_us))});
    for (const std::string& curve : errors.without_measurements) {
      notes += fmt::format("{}: no measurement of {} was given to --fit; its times are priors\n", errors.table, curve);
    }
  }
  return table.render() + notes;
}

void calibrate(const CalibrateOptions& options) {
  if (!options.json_target.empty()) check_output(options.json_target);
  const TableSet fit = read_tables(options.fit_files);
  const TableSet evaluated = read_tables(options.evaluate_files);
  Progress progress("fitting", options.quiet);
  const Calibration calibration(fit.tables);
  std::vector<TableErrors> errors;
  progress.begin("predicting");
  for (const MeasurementTable& table : evaluated.tables) {
    errors.push_back(evaluate(calibration, table));
    progress.update(static_cast<std::int64_t>(errors.size()), static_cast<std::int64_t>(evaluated.tables.size()));
  }
  progress.finish();
  Json left_out = Json::array();
  std::string notes;
  for (const TableSet* const set : {&fit, &evaluated}) {
    for (const LeftOutFile& entry : set->left_out) {
      left_out.push_back({{"file", entry.file}, {"reason", entry.reason}});
      notes += fmt::format("left out: {}\n", entry.reason);
    }
  }
  if (!options.json_target.empty()) {
    write_output(options.json_target, json_text({{"tool", "epistle calibrate"},
                                                 {"fit", options.fit_files},
                                                 {"evaluate", options.evaluate_files},
                                                 {"left_out", left_out},
                                                 {"curves", curves_json(calibration)},
                                                 {"tables", tables_json(errors)}}));
  }
  if (options.json_target == kStdout) return;
  std::string text = render_curves(calibration);
  if (!errors.empty()) text += "\n" + render_errors(errors);
  if (!notes.empty()) text += "\n" + notes;
  print(text);
}

}  // namespace

void add_calibrate_command(CLI::App& app, int& /*exit_code*/) {
  CLI::App* const command = app.add_subcommand("calibrate", "Fit cost curves to measurements and test them on others");
  const auto options = std::make_shared<CalibrateOptions>();
  command
      ->add_option("--fit", options->fit_files,
                   "Fit to these: tables in the calibration format, or records of epistle bench (.json)")
      ->required()
      ->expected(1, CLI::detail::expected_max_vector_size)
      ->type_name("FILE...");
  command
      ->add_option("--evaluate", options->evaluate_files,
                   "Predict these, which the fit does not see, and show the errors")
      ->expected(1, CLI::detail::expected_max_vector_size)
      ->type_name("FILE...");
  add_json_option(*command, options->json_target);
  command->add_flag("-q,--quiet", options->quiet, "No progress bar");
  command->footer(
      "Examples:\n"
      "  epistle calibrate --fit link.csv gemm.csv --json constants.json\n"
      "  epistle calibrate --fit half/*.json --evaluate other/*.json");
  command->callback([options] { calibrate(*options); });
}

}  // namespace epistle::cli
