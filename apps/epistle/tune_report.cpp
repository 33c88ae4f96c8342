#include "tune_report.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "page_parts.hpp"
#include "record_parts.hpp"
#include "report/format.hpp"
#include "report/table.hpp"

namespace epistle::cli {
namespace {

constexpr double kKeepsSpeed = 1.02;  // a period that is no longer than this share of the best keeps the speed

Json period_json(const Summary& time_us) {
  return {
      {"p10", time_us.p10}, {"p50", time_us.median}, {"p90", time_us.p90}, {"p95", time_us.p95}, {"p99", time_us.p99}};
}

Json optional_json(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

Json knob_json(const TunedKnob& tuned) {
  Json values = Json::array();
  for (std::size_t idx = 0; idx < tuned.trials.size(); ++idx) {
    const KnobTrial& trial = tuned.trials[idx];
    const auto gain = idx == 0 ? std::nullopt : gain_per_unit_us(tuned.knob, tuned.trials[idx - 1], trial);
    values.push_back({{"value", tuned.knob.values[trial.value_idx].text},
                      {"period_us", period_json(trial.period_us)},
                      {"relative", trial.relative},
                      {"verdict", trial.verdict},
                      {"gain_per_unit_us", optional_json(gain)},
                      {"buffer_bytes", trial.bytes}});
  }
  Json unavailable = Json::array();
  for (const Unavailable& one : tuned.unavailable) {
    unavailable.push_back({{"value", one.name}, {"reason", one.reason}});
  }
  return {{"knob", tuned.knob.name},
          {"chosen", tuned.trials.empty() ? Json(nullptr)
                                          : Json(tuned.knob.values[tuned.trials[tuned.chosen_idx].value_idx].text)},
          {"stopped", tuned.stop},
          {"values", values},
          {"unavailable", unavailable}};
}

/// The smallest buffers of all settings that were tried and keep the speed of the one that was chosen in the end. (The
/// fastest one may be so by chance.)
Json smallest_buffer_json(const std::vector<TunedKnob>& knobs) {
  double best = 0.0;
  for (const TunedKnob& tuned : knobs) {
    if (!tuned.trials.empty()) best = tuned.trials[tuned.chosen_idx].relative;
  }
  Json smallest = nullptr;
  for (const TunedKnob& tuned : knobs) {
    for (const KnobTrial& trial : tuned.trials) {
      if (trial.relative > best * kKeepsSpeed) continue;
      if (!smallest.is_null() && smallest.at("bytes").get<std::int64_t>() <= trial.bytes) continue;
      smallest = {{"bytes", trial.bytes},
                  {"knob", tuned.knob.name},
                  {"value", tuned.knob.values[trial.value_idx].text},
                  {"relative", trial.relative}};
    }
  }
  return smallest;
}

Json joint_json(const TuneResult& result) {
  Json contenders = Json::array();
  for (const PairTimes& chain : result.last.chains) {
    contenders.push_back({{"name", chain.dispatcher}, {"period_us", period_json(chain.time_us)}});
  }
  const auto& difference = result.difference;
  return {{"contenders", contenders},
          {"ratio", result.ratio},
          {"difference_us", difference ? Json(difference->estimate) : Json(nullptr)},
          {"low_us", difference ? Json(difference->low) : Json(nullptr)},
          {"high_us", difference ? Json(difference->high) : Json(nullptr)},
          {"confidence", kConfidence},
          {"verdict", verdict(difference)},
          {"found_defaults", result.found_defaults},
          {"kept_defaults", result.kept_defaults}};
}

/// What ran beside the calls; null where nothing did.
Json gemm_json(const BenchPlan& plan, const TuneResult& result) {
  if (!plan.spec.compute_beside) return nullptr;
  const BenchResult& first = result.first;
  return {{"units_per_pair", first.compute_units},
          {"unit_us", first.compute_unit_us},
          {"alone_us_per_pair", static_cast<double>(first.compute_units) * first.compute_unit_us}};
}

/// "each period is ...", where it is not that of calls alone.
std::string load_text(const Json& document) {
  std::string text;
  const Json& gemm = document.at("gemm");
  if (!gemm.is_null()) {
    text += fmt::format("beside every pair ran work that takes {} by itself: periods are until both have ended\n",
                        format_us(gemm.at("alone_us_per_pair").get<double>()));
  }
  const auto num_requests = document.at("concurrency").get<std::int64_t>();
  if (num_requests > 1) text += fmt::format("{} requests were under way at once\n", num_requests);
  return text;
}

Json crossover_json(const TuneResult& result) {
  Json points = Json::array();
  Json at = nullptr;
  for (const TunedCrossover& point : result.crossover) {
    points.push_back({{"tokens", point.num_tokens},
                      {"low_latency_us", period_json(point.low_latency_us)},
                      {"direct_us", period_json(point.direct_us)},
                      {"direct_is", point.verdict}});
    if (at.is_null() && point.verdict == "faster") at = point.num_tokens;
  }
  return {{"direct_faster_from_tokens", at},
          {"points", points},
          {"not_measured", result.no_crossover.empty() ? Json(nullptr) : Json(result.no_crossover)}};
}

std::string settings_text(const Json& settings) {
  std::string text;
  for (const auto& [name, value] : settings.items()) {
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", name, plain_text(value));
  }
  return text;
}

std::vector<Column> tune_columns() {
  return {{"knob"},
          {"value"},
          {"p50", Align::kRight},
          {"p90", Align::kRight},
          {"of default", Align::kRight},
          {"gain per unit", Align::kRight},
          {"buffers", Align::kRight},
          {"verdict"}};
}

std::vector<std::vector<html::Cell>> rows_of(const Json& document) {
  std::vector<std::vector<html::Cell>> rows;
  for (const Json& knob : document.at("knobs")) {
    for (const Json& value : knob.at("values")) {
      const bool chosen = value.at("value") == knob.at("chosen");
      rows.push_back({{.text = plain_text(knob.at("knob"))},
                      {.text = plain_text(value.at("value")) + (chosen ? " *" : "")},
                      us_cell(value.at("period_us").at("p50")),
                      us_cell(value.at("period_us").at("p90")),
                      percent_cell(value.at("relative")),
                      us_cell(value.at("gain_per_unit_us")),
                      bytes_cell(value.at("buffer_bytes")),
                      {.text = plain_text(value.at("verdict"))}});
    }
    for (const Json& missing : knob.at("unavailable")) {
      std::vector<html::Cell> cells(tune_columns().size(), html::Cell{.text = "-"});
      cells.front().text = plain_text(knob.at("knob"));
      cells[1].text = plain_text(missing.at("value"));
      cells.back().text = "unavailable: " + plain_text(missing.at("reason"));
      rows.push_back(std::move(cells));
    }
  }
  return rows;
}

std::string joint_text(const Json& document) {
  const Json& joint = document.at("joint");
  if (joint.at("found_defaults").get<bool>()) {
    return fmt::format(
        "every knob was best at its default; in turns with themselves the defaults took {:.3f} x their median.",
        joint.at("ratio").get<double>());
  }
  const std::string outcome = joint.at("kept_defaults").get<bool>()
                                  ? "the defaults stay, as nothing was shown to be better"
                                  : "the tuned settings are taken";
  return fmt::format("default and tuned settings in turns: {:.3f} x the default's median, {}; {}.",
                     joint.at("ratio").get<double>(), plain_text(joint.at("verdict")), outcome);
}

std::string crossover_text(const Json& crossover) {
  if (!crossover.at("not_measured").is_null()) {
    return "low_latency and direct were not compared by tokens: " + plain_text(crossover.at("not_measured")) + ".";
  }
  const Json& at = crossover.at("direct_faster_from_tokens");
  if (at.is_null()) return "direct was faster than low_latency at none of the token counts that were tried.";
  return fmt::format("direct is faster than low_latency from {} tokens per rank on.", plain_text(at));
}

std::string buffer_text(const Json& smallest) {
  if (smallest.is_null()) return "No buffers were measured.";
  return fmt::format("smallest buffers that keep the speed: {} on the largest rank, at {} {}.",
                     format_bytes(smallest.at("bytes").get<std::int64_t>()), plain_text(smallest.at("knob")),
                     plain_text(smallest.at("value")));
}

/// Median periods with their p10 and p90.
html::Series band_series(const std::string& name) { return {.name = name, .values = {}, .low = {}, .high = {}}; }

void add_point(html::Series& series, const Json& period_us) {
  series.values.push_back(number_of(period_us.at("p50")));
  series.low.push_back(number_of(period_us.at("p10")));
  series.high.push_back(number_of(period_us.at("p90")));
}

html::ChartBlock knob_chart(const Json& knob) {
  const std::string name = plain_text(knob.at("knob"));
  html::ChartBlock chart{.kind = html::ChartKind::kLine,
                         .title = "Period by " + name,
                         .summary = fmt::format("Medians, with 10th to 90th percentile; {} is chosen, and {}.",
                                                plain_text(knob.at("chosen")), plain_text(knob.at("stopped"))),
                         .label_title = name,
                         .value_title = "microseconds",
                         .labels = {},
                         .series = {band_series("period")}};
  for (const Json& value : knob.at("values")) {
    chart.labels.push_back(plain_text(value.at("value")));
    add_point(chart.series[0], value.at("period_us"));
  }
  return chart;
}

html::ChartBlock crossover_chart(const Json& crossover) {
  html::ChartBlock chart{.kind = html::ChartKind::kLine,
                         .title = "Period by tokens",
                         .summary = "Medians, with 10th to 90th percentile. " + crossover_text(crossover),
                         .label_title = "tokens per rank",
                         .value_title = "microseconds",
                         .labels = {},
                         .series = {band_series("low_latency"), band_series("direct")},
                         .logarithmic = true};
  for (const Json& point : crossover.at("points")) {
    chart.labels.push_back(plain_text(point.at("tokens")));
    add_point(chart.series[0], point.at("low_latency_us"));
    add_point(chart.series[1], point.at("direct_us"));
  }
  return chart;
}

/// What was seen to be right before anything was tuned, from few ranks to all.
Json validation_json(const BenchPlan& plan, const TuneResult& result) {
  const char* const part = plan.spec.expectation ? "passed" : "ran";
  const std::string_view all = verification_name(plan, result.first);
  const int domain = plan.spec.domain_size > 0 ? plan.spec.domain_size : plan.num_ranks;
  const bool several = domain < plan.num_ranks;
  const std::string_view inside = !several ? all : domain == 1 ? "not there: every rank is a domain" : part;
  return {{"one_rank", part},
          {"in_domain", inside},
          {"across_domains", several ? all : std::string_view("not there: all ranks are in one domain")}};
}

}  // namespace

Json tune_json(const BenchPlan& plan, const TuneResult& result, TunePolicy policy) {
  Json knobs = Json::array();
  for (const TunedKnob& tuned : result.knobs) knobs.push_back(knob_json(tuned));
  Json document = provenance_json("epistle tune", make_fingerprint());
  document.update(Json{{"policy", to_string(policy)},
                       {"key", profile_key(profile_use(plan))},
                       {"settings", settings_json(result.settings, plan.spec.device)},
                       {"default_settings", settings_json(result.defaults, plan.spec.device)},
                       {"validation", validation_json(plan, result)},
                       {"concurrency", plan.spec.num_in_flight},
                       {"gemm", gemm_json(plan, result)},
                       {"joint", joint_json(result)},
                       {"knobs", knobs},
                       {"smallest_buffer", smallest_buffer_json(result.knobs)},
                       {"crossover", crossover_json(result)},
                       {"rounds", plan.spec.num_iterations},
                       {"pairs_per_round", plan.spec.num_chained_pairs},
                       {"load", load_json(plan, result.first)},
                       {"stack", stack_json(plan, result.first)}});
  return document;
}

std::string render_tune_table(const Json& document) {
  std::string text =
      fmt::format("policy {}; validated with one rank ({}), then in the domain ({}), then across domains ({})\n\n",
                  plain_text(document.at("policy")), plain_text(document.at("validation").at("one_rank")),
                  plain_text(document.at("validation").at("in_domain")),
                  plain_text(document.at("validation").at("across_domains")));
  text += load_text(document);
  Table table(tune_columns());
  for (auto& row : rows_of(document)) {
    std::vector<std::string> cells;
    for (html::Cell& cell : row) cells.push_back(std::move(cell.text));
    table.add_row(std::move(cells));
  }
  text += table.render();
  text += "* = chosen. Gain per unit: microseconds that each further worker, SM or buffer saved.\n";
  for (const Json& knob : document.at("knobs")) {
    text += fmt::format("{}: {}\n", plain_text(knob.at("knob")), plain_text(knob.at("stopped")));
  }
  text += fmt::format("\n{}\n{}\n{}\nsettings: {}\n", joint_text(document), crossover_text(document.at("crossover")),
                      buffer_text(document.at("smallest_buffer")), settings_text(document.at("settings")));
  return text;
}

std::string render_tune_page(const Json& document) {
  html::Page page("epistle tune", fmt::format("policy {}; {}", plain_text(document.at("policy")),
                                              settings_text(document.at("settings"))));
  page.add({.text = joint_text(document), .tone = html::Tone::kGood});
  page.add({.text = crossover_text(document.at("crossover"))});
  if (const std::string load = load_text(document); !load.empty()) page.add({.text = load});
  page.add({.text = buffer_text(document.at("smallest_buffer"))});
  page.add_section("Knobs, one at a time");
  page.add({.title = "Values that were tried",
            .columns = tune_columns(),
            .rows = rows_of(document),
            .note = "* = chosen. Gain per unit: microseconds that each further worker, SM or buffer saved."});
  for (const Json& knob : document.at("knobs")) {
    if (!knob.at("values").empty()) page.add(knob_chart(knob));
  }
  page.add_section("Tokens and load");
  if (!document.at("crossover").at("points").empty()) page.add(crossover_chart(document.at("crossover")));
  page.add(load_chart(document.at("load")));
  html::Facts facts;
  for (const char* const name : {"settings", "default_settings", "key", "validation"}) {
    add_facts(facts, name, document.at(name));
  }
  page.add_facts("Profile", facts);
  add_origin(page, document);
  page.set_record(json_text(document));
  return page.render();
}

}  // namespace epistle::cli
