#include "bench_report.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "bench_pairs.hpp"
#include "measure/bench_collector.hpp"
#include "measure/fingerprint.hpp"
#include "record_parts.hpp"
#include "report/format.hpp"
#include "report/table.hpp"
#include "topology/machine.hpp"

namespace epistle::cli {
namespace {

/// "4 threads", "1 process"
std::string ranks_text(const BenchPlan& plan) {
  std::string kind(to_string(plan.group));
  if (plan.num_ranks == 1) kind = plan.group == GroupKind::kThreads ? "thread" : "process";
  return fmt::format("{} {}", plan.num_ranks, kind);
}

/// "20 tokens each", "512, 0, 17 tokens"
std::string tokens_text(const BenchPlan& plan) {
  constexpr std::size_t kMaxListed = 8;
  const std::vector<std::int64_t>& counts = plan.tokens_per_rank;
  const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
  if (*least == *most) {
    return fmt::format("{} token{}{}", *most, *most == 1 ? "" : "s", plan.num_ranks == 1 ? "" : " each");
  }
  if (counts.size() <= kMaxListed) return fmt::format("{} tokens", fmt::join(counts, ", "));
  const std::int64_t total = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
  return fmt::format("{} to {} tokens each ({} in all)", *least, *most, total);
}

std::string routing_text(const BenchPlan& plan) {
  const std::string text = plan.routing.to_string();
  return plan.trace_layer < 0 ? text : fmt::format("{} layer {}", text, plan.trace_layer);
}

/// What a rank works with: "2 workers per rank", "16 SMs per rank, mover auto".
std::string means_text(const BenchSpec& spec) {
  if (spec.device == Device::kHost) {
    return fmt::format("{} worker{} per rank", spec.host.num_workers, spec.host.num_workers == 1 ? "" : "s");
  }
  const std::string sms = spec.cuda.num_sms == 0
                              ? "SMs as tuned"
                              : fmt::format("{} SM{} per rank", spec.cuda.num_sms, spec.cuda.num_sms == 1 ? "" : "s");
  return fmt::format("{}, mover {}, {} call{} in a row per sample", sms, to_string(spec.cuda.mover),
                     spec.runs_per_sample, spec.runs_per_sample == 1 ? "" : "s");
}

std::string shape_line(const BenchPlan& plan) {
  const ResolvedConfig& config = plan.resolved;
  const std::string layout = config.layout == OutputLayout::kExpertMajor
                                 ? fmt::format("expert_major (alignment {})", config.alignment)
                                 : std::string(to_string(config.layout));
  std::string text =
      fmt::format("{}: hidden {}, {} experts, top-{}; {} of {}; {}{}, {}, routing {}\n",
                  plan.model.empty() ? "custom shape" : plan.model, config.hidden, config.num_experts, config.top_k,
                  ranks_text(plan), tokens_text(plan), to_string(config.dtype),
                  config.quantises ? fmt::format(", wire {}", wire_name(config)) : "", layout, routing_text(plan));
  if (config.places_experts()) {
    text += fmt::format("placement {}: {} slots on {} ranks, {} at most on one\n", plan.placement,
                        config.placement.num_slots(), plan.num_ranks, config.slots_per_rank);
  }
  text += fmt::format("combine {}, weights {}; {} sizing{}; {}; {} iteration{}\n", to_string(config.order),
                      config.apply_weights ? "on" : "off", to_string(config.sizing),
                      config.zero_padding ? "" : ", padding left as it is", means_text(plan.spec),
                      plan.spec.num_iterations, plan.spec.num_iterations == 1 ? "" : "s");
  return text;
}

std::string machine_line(const BenchPlan& plan, const BenchResult& result) {
  const MachineInfo& machine = machine_info();
  const int num_threads = plan.num_ranks * plan.spec.host.num_workers;
  return fmt::format(
      "{}, {} of {} processing units; memory-copy limit {} ({}, {} thread{} at once, {} each)\n\n",
      machine.cpu_model.empty() ? machine.architecture : machine.cpu_model, machine.num_usable_processing_units,
      machine.num_processing_units, format_rate(result.limit.bytes_per_s), result.limit.method, num_threads,
      num_threads == 1 ? "" : "s", format_bytes(result.limit.working_set_bytes / plan.spec.host.num_workers));
}

std::string gpu_lines(const BenchPlan& plan, const CudaRun& run) {
  const LinkLimit& limit = run.limit;
  std::string text = fmt::format("{} rank{} on {} GPU{} of {} visible: {}, {} SMs; driver {}, CUDA {}\n",
                                 plan.num_ranks, plan.num_ranks == 1 ? "" : "s", run.num_used_gpus,
                                 run.num_used_gpus == 1 ? "" : "s", run.num_visible_gpus, run.gpu, run.num_sms,
                                 run.driver.empty() ? "not known" : run.driver, cuda_version_text(run.runtime_cuda));
  text += fmt::format("link limit per rank, all ranks at once: {} with {} SMs, {} with {} ({}, {} each)\n\n",
                      format_rate(limit.bytes_per_s_few_sms), limit.few_sms, format_rate(limit.bytes_per_s_all_sms),
                      limit.all_sms, limit.kind, format_bytes(limit.buffer_bytes));
  return text;
}

/// What the network carries, and which rank takes which card.
std::string network_line(const BenchResult& result) {
  if (!result.network) return {};
  std::string ways;
  const std::vector<std::string>& transports = result.network->transports;
  for (std::size_t rank = 0; rank < transports.size(); ++rank) {
    const bool is_new = std::find(transports.begin(), transports.begin() + static_cast<std::ptrdiff_t>(rank),
                                  transports[rank]) == transports.begin() + static_cast<std::ptrdiff_t>(rank);
    if (is_new) ways += fmt::format("{}{}", ways.empty() ? "" : "; ", transports[rank]);
  }
  return fmt::format("network limit per rank, all ranks at once, measured in this run: {} by {}\n",
                     format_rate(result.network->bytes_per_s), ways);
}

/// Where ranks are in several domains: what each class of links carries.
std::string render_links_table(const BenchPlan& plan, const BenchResult& result) {
  if (plan.resolved.domain_size == 0) return {};
  std::vector<Column> columns = {{"dispatcher", Align::kLeft},     {"phase", Align::kLeft},
                                 {"own bytes", Align::kRight},     {"domain bytes", Align::kRight},
                                 {"network bytes", Align::kRight}, {"network rate", Align::kRight}};
  if (result.network) columns.push_back({"of the network limit", Align::kRight});
  Table table(columns);
  for (const PhaseResult& phase : result.phases) {
    const LinkBytes& bytes = phase.link_bytes;
    std::vector<std::string> cells = {phase.dispatcher,
                                      std::string(to_string(phase.phase)),
                                      format_bytes(bytes.own),
                                      format_bytes(bytes.domain),
                                      format_bytes(bytes.network),
                                      format_rate(bytes_per_s(bytes.network, phase.time_us.median))};
    if (result.network) cells.push_back(format_percent(phase.network_fraction));
    table.add_row(cells);
  }
  return table.render() + fmt::format(
                              "{} domains of {} ranks. Bytes are per rank (means), as the layout predicts: what "
                              "is done for a rank's tokens, headers included.\n{}\n",
                              plan.num_ranks / plan.resolved.domain_size, plan.resolved.domain_size,
                              network_line(result));
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
  for (const DispatcherSummary& summary : result.dispatchers) {
    if (!summary.tuning.empty()) text += fmt::format("tuning of {}:\n{}", summary.dispatcher, summary.tuning);
    if (!text.ends_with('\n')) text += '\n';
  }
  return text;
}

}  // namespace

std::string verification_line(const BenchPlan& plan, const BenchResult& result) {
  if (plan.spec.expectation == nullptr) return "not verified (--no-verify)\n";
  if (!result.verified) return fmt::format("VERIFICATION FAILED: {}\n", result.mismatch);
  return fmt::format("verified: every output bit equals the reference ({} compared on {} rank{})\n",
                     format_bytes(result.verified_bytes), plan.num_ranks, plan.num_ranks == 1 ? "" : "s");
}

std::string render_bench_table(const BenchPlan& plan, const BenchResult& result) {
  std::string text = shape_line(plan);
  text += result.cuda ? gpu_lines(plan, *result.cuda) : machine_line(plan, result);
  std::vector<Column> columns = {{"dispatcher", Align::kLeft}, {"phase", Align::kLeft}, {"median", Align::kRight}};
  if (result.cuda) columns.insert(columns.end(), {{"p10", Align::kRight}, {"p90", Align::kRight}});
  columns.insert(columns.end(), {{"p99", Align::kRight},
                                 {"algorithm bytes", Align::kRight},
                                 {"rate", Align::kRight},
                                 {"wire bytes", Align::kRight},
                                 {result.cuda ? "wire rate" : "rate", Align::kRight},
                                 {result.cuda ? "of the link limit" : "of limit", Align::kRight}});
  Table table(columns);
  for (const PhaseResult& phase : result.phases) {
    const Summary& time_us = phase.time_us;
    const bool has_bytes = phase.phase != BenchPhase::kLayout;
    std::vector<std::string> cells = {phase.dispatcher, std::string(to_string(phase.phase)), format_us(time_us.median)};
    if (result.cuda) cells.insert(cells.end(), {format_us(time_us.p10), format_us(time_us.p90)});
    cells.push_back(format_us(time_us.p99));
    const auto add_bytes = [&](std::int64_t num_bytes) {
      cells.push_back(has_bytes ? format_bytes(num_bytes) : "-");
      cells.push_back(has_bytes ? format_rate(bytes_per_s(num_bytes, time_us.median)) : "-");
    };
    add_bytes(phase.algorithm_bytes);
    add_bytes(phase.wire_bytes);
    // The layout alone puts no rows on the wire.
    cells.push_back(has_bytes || !result.cuda ? format_percent(phase.limit_fraction) : "-");
    table.add_row(cells);
  }
  text += table.render();
  text +=
      "Bytes and rates are per rank (means). Algorithm bytes: rows received x row size, local rows included. Wire\n"
      "bytes: what crossed between ranks. ";
  text += result.cuda ? "Of the link limit: the wire rate against what a rank can store, as measured in this\nrun.\n\n"
                      : "Of limit: bytes that must be read and written once, against the copy limit.\n\n";
  text += render_links_table(plan, result);
  text += render_pairs_table(result);
  text += load_lines(plan, result);
  text += verification_line(plan, result);
  return text;
}

Json bench_json(const BenchPlan& plan, const BenchResult& result) {
  const Fingerprint fingerprint = make_fingerprint();
  Json buffers = Json::array();
  for (const DispatcherSummary& summary : result.dispatchers) {
    buffers.push_back({{"dispatcher", summary.dispatcher},
                       {"max_buffer_bytes", summary.max_buffer_bytes},
                       {"as_predicted", summary.buffers_as_predicted}});
    if (result.cuda) buffers.back()["tuning"] = summary.tuning;
  }
  Json document = provenance_json("epistle bench", fingerprint);
  document.update(Json{{"verified", result.verified},
                       {"verification", verification_name(plan, result)},
                       {"mismatch", result.mismatch.empty() ? Json(nullptr) : Json(result.mismatch)},
                       {"verified_bytes", result.verified_bytes},
                       {"config", config_json(plan)},
                       {"machine", machine_json()},
                       {"gpu", gpu_json(result)},
                       {"versions", versions_json(fingerprint)},
                       {"limit_bytes_per_s", result.cuda ? result.cuda->limit.bytes_per_s() : result.limit.bytes_per_s},
                       {"limit", limit_json(result)},
                       {"network", network_json(result)},
                       {"load", load_json(plan, result)},
                       {"buffers", buffers},
                       {"results", phases_json(result)},
                       {"chain", chains_json(result)},
                       {"replays", replays_json(result)},
                       {"host_calls", host_calls_json(result)},
                       {"stack", stack_json(plan, result)}});
  return document;
}

}  // namespace epistle::cli
