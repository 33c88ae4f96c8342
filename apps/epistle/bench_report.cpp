#include "bench_report.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "measure/fingerprint.hpp"
#include "report/format.hpp"
#include "report/table.hpp"
#include "topology/machine.hpp"

namespace epistle::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kJsonIndent = 2;
constexpr double kMicrosPerSecond = 1e6;

double bytes_per_s(std::int64_t num_bytes, double time_us) {
  return time_us > 0.0 ? static_cast<double>(num_bytes) / (time_us / kMicrosPerSecond) : 0.0;
}

/// "4 threads", "1 process"
std::string ranks_text(const BenchPlan& plan) {
  std::string kind(to_string(plan.group));
  if (plan.num_ranks == 1) kind = plan.group == GroupKind::kThreads ? "thread" : "process";
  return fmt::format("{} {}", plan.num_ranks, kind);
}

std::string routing_text(const BenchPlan& plan) {
  const std::string text = plan.routing.to_string();
  return plan.trace_layer < 0 ? text : fmt::format("{} layer {}", text, plan.trace_layer);
}

std::string shape_line(const BenchPlan& plan) {
  const DispatcherConfig& config = plan.spec.config;
  const std::string layout = config.layout == OutputLayout::kExpertMajor
                                 ? fmt::format("expert_major (alignment {})", config.alignment)
                                 : std::string(to_string(config.layout));
  std::string text =
      fmt::format("{}: hidden {}, {} experts, top-{}; {} of {} token{}{}; {}, {}, routing {}\n",
                  plan.model.empty() ? "custom shape" : plan.model, config.hidden, config.num_experts, config.top_k,
                  ranks_text(plan), config.max_tokens, config.max_tokens == 1 ? "" : "s",
                  plan.num_ranks == 1 ? "" : " each", to_string(config.dtype), layout, routing_text(plan));
  text += fmt::format("combine {}, weights {}; {} sizing; {} worker{} per rank; {} iteration{}\n",
                      to_string(config.combine), config.apply_weights ? "on" : "off", to_string(config.sizing),
                      config.num_workers, config.num_workers == 1 ? "" : "s", plan.spec.num_iterations,
                      plan.spec.num_iterations == 1 ? "" : "s");
  return text;
}

std::string load_lines(const BenchPlan& plan, const BenchResult& result) {
  const LoadSummary& load = result.load;
  std::string text =
      fmt::format("load per rank, max/mean: rows {:.3f}, assignments {:.3f}; busiest rank {} rows; padding {} rows\n",
                  load.rows_max_over_mean, load.assignments_max_over_mean, format_count(load.max_rows),
                  format_count(load.padding_rows));
  if (plan.router_capacity > 0) {
    text += fmt::format("router capacity {} tokens per expert and rank: {} assignments dropped\n", plan.router_capacity,
                        format_count(plan.dropped_by_router));
  }
  if (load.dropped > 0)
    text += fmt::format("over the output capacity: {} assignments dropped\n", format_count(load.dropped));
  for (const DispatcherSummary& summary : result.dispatchers) {
    text += fmt::format(
        "buffers of {}: {} on the largest rank, {}\n", summary.dispatcher, format_bytes(summary.max_buffer_bytes),
        summary.buffers_as_predicted ? "as the layout predicts, to the byte" : "NOT what the layout predicts");
  }
  return text;
}

Json config_json(const BenchPlan& plan) {
  const DispatcherConfig& config = plan.spec.config;
  return {{"model", plan.model.empty() ? Json(nullptr) : Json(plan.model)},
          {"hidden", config.hidden},
          {"num_experts", config.num_experts},
          {"top_k", config.top_k},
          {"dtype", to_string(config.dtype)},
          {"layout", to_string(config.layout)},
          {"alignment", config.alignment},
          {"sizing", to_string(config.sizing)},
          {"capacity_rows", config.capacity_rows},
          {"overflow", to_string(config.overflow)},
          {"combine", to_string(config.combine)},
          {"weights", config.apply_weights},
          {"routing", plan.routing.to_string()},
          {"trace_layer", plan.trace_layer < 0 ? Json(nullptr) : Json(plan.trace_layer)},
          {"router_capacity", plan.router_capacity},
          {"router_dropped", plan.dropped_by_router},
          {"device", "host"},
          {"group", to_string(plan.group)},
          {"ranks", plan.num_ranks},
          {"tokens", config.max_tokens},
          {"workers", config.num_workers},
          {"iterations", plan.spec.num_iterations},
          {"warmups", plan.spec.num_warmups},
          {"seed", plan.spec.seed},
          {"bind", plan.spec.bind},
          {"stage_combine", plan.spec.stage_combine}};
}

std::string_view verification_text(const BenchPlan& plan, const BenchResult& result) {
  if (plan.spec.expectation == nullptr) return "off";
  return result.verified ? "passed" : "failed";
}

Json machine_json() {
  const MachineInfo& machine = machine_info();
  return {{"host", machine.host},
          {"cpu", machine.cpu_model},
          {"architecture", machine.architecture},
          {"kernel", machine.kernel},
          {"packages", machine.num_packages},
          {"numa_nodes", machine.num_numa_nodes},
          {"cores", machine.num_cores},
          {"processing_units", machine.num_processing_units},
          {"usable_processing_units", machine.num_usable_processing_units},
          {"last_level_cache_bytes", machine.last_level_cache_bytes},
          {"memory_bytes", machine.memory_bytes}};
}

Json versions_json(const Fingerprint& fingerprint) {
  return {{"epistle", fingerprint.epistle_version}, {"compiler", fingerprint.compiler},
          {"build_type", fingerprint.build_type},   {"simd", fingerprint.simd_target},
          {"fmt", fingerprint.fmt_version},         {"highway", fingerprint.highway_version},
          {"hwloc", fingerprint.hwloc_version}};
}

}  // namespace

std::string verification_line(const BenchPlan& plan, const BenchResult& result) {
  if (plan.spec.expectation == nullptr) return "not verified (--no-verify)\n";
  if (!result.verified) return fmt::format("VERIFICATION FAILED: {}\n", result.mismatch);
  return fmt::format("verified: every output bit equals the reference ({} compared on {} rank{})\n",
                     format_bytes(result.verified_bytes), plan.num_ranks, plan.num_ranks == 1 ? "" : "s");
}

std::string render_bench_table(const BenchPlan& plan, const BenchResult& result) {
  const MachineInfo& machine = machine_info();
  std::string text = shape_line(plan);
  text += fmt::format(
      "{}, {} of {} processing units; memory-copy limit {} ({}, {} thread{} at once, {} each)\n\n",
      machine.cpu_model.empty() ? machine.architecture : machine.cpu_model, machine.num_usable_processing_units,
      machine.num_processing_units, format_rate(result.limit.bytes_per_s), result.limit.method,
      plan.num_ranks * plan.spec.config.num_workers, plan.num_ranks * plan.spec.config.num_workers == 1 ? "" : "s",
      format_bytes(result.limit.working_set_bytes / plan.spec.config.num_workers));
  Table table({{"dispatcher", Align::kLeft},
               {"phase", Align::kLeft},
               {"median", Align::kRight},
               {"p99", Align::kRight},
               {"algorithm bytes", Align::kRight},
               {"rate", Align::kRight},
               {"wire bytes", Align::kRight},
               {"rate", Align::kRight},
               {"of limit", Align::kRight}});
  for (const PhaseResult& phase : result.phases) {
    const double median_us = phase.time_us.median;
    const bool has_bytes = phase.phase != BenchPhase::kLayout;
    table.add_row({phase.dispatcher, std::string(to_string(phase.phase)), format_us(median_us),
                   format_us(phase.time_us.p99), has_bytes ? format_bytes(phase.algorithm_bytes) : "-",
                   has_bytes ? format_rate(bytes_per_s(phase.algorithm_bytes, median_us)) : "-",
                   has_bytes ? format_bytes(phase.wire_bytes) : "-",
                   has_bytes ? format_rate(bytes_per_s(phase.wire_bytes, median_us)) : "-",
                   format_percent(phase.limit_fraction)});
  }
  text += table.render();
  text +=
      "Bytes and rates are per rank (means). Algorithm bytes: rows received x row size, local rows included. Wire\n"
      "bytes: what crossed between ranks. Of limit: bytes that must be read and written once, against the copy "
      "limit.\n\n";
  text += load_lines(plan, result);
  text += verification_line(plan, result);
  return text;
}

std::string render_bench_json(const BenchPlan& plan, const BenchResult& result) {
  const Fingerprint fingerprint = make_fingerprint();
  Json results = Json::array();
  for (const PhaseResult& phase : result.phases) {
    results.push_back({{"dispatcher", phase.dispatcher},
                       {"phase", to_string(phase.phase)},
                       {"median_us", phase.time_us.median},
                       {"p99_us", phase.time_us.p99},
                       {"min_us", phase.time_us.min},
                       {"max_us", phase.time_us.max},
                       {"algorithm_bytes", phase.algorithm_bytes},
                       {"wire_bytes", phase.wire_bytes},
                       {"moved_bytes", phase.moved_bytes},
                       {"algorithm_bytes_per_s", bytes_per_s(phase.algorithm_bytes, phase.time_us.median)},
                       {"wire_bytes_per_s", bytes_per_s(phase.wire_bytes, phase.time_us.median)},
                       {"limit_fraction", phase.limit_fraction}});
  }
  Json buffers = Json::array();
  for (const DispatcherSummary& summary : result.dispatchers) {
    buffers.push_back({{"dispatcher", summary.dispatcher},
                       {"max_buffer_bytes", summary.max_buffer_bytes},
                       {"as_predicted", summary.buffers_as_predicted}});
  }
  const Json document = {{"tool", "epistle bench"},
                         {"date", fingerprint.date_utc},
                         {"verified", result.verified},
                         {"verification", verification_text(plan, result)},
                         {"mismatch", result.mismatch.empty() ? Json(nullptr) : Json(result.mismatch)},
                         {"verified_bytes", result.verified_bytes},
                         {"config", config_json(plan)},
                         {"machine", machine_json()},
                         {"versions", versions_json(fingerprint)},
                         {"limit_bytes_per_s", result.limit.bytes_per_s},
                         {"limit",
                          {{"method", result.limit.method},
                           {"memcpy_bytes_per_s", result.limit.memcpy_bytes_per_s},
                           {"streaming_bytes_per_s", result.limit.streaming_bytes_per_s},
                           {"working_set_bytes_per_rank", result.limit.working_set_bytes}}},
                         {"load",
                          {{"rows_max_over_mean", result.load.rows_max_over_mean},
                           {"assignments_max_over_mean", result.load.assignments_max_over_mean},
                           {"max_rows", result.load.max_rows},
                           {"padding_rows", result.load.padding_rows},
                           {"dropped", result.load.dropped}}},
                         {"buffers", buffers},
                         {"results", results}};
  return document.dump(kJsonIndent);
}

}  // namespace epistle::cli
