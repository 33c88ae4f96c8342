#include "record_parts.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include <unistd.h>

#include <fmt/format.h>

#include "built_commit.hpp"
#include "core/settings.hpp"
#include "output.hpp"
#include "report/html/page.hpp"
#include "topology/machine.hpp"

namespace epistle::cli {
namespace {

Json link_json(const LinkLimit& limit) {
  return {{"kind", limit.kind},
          {"few_sms", limit.few_sms},
          {"few_sms_bytes_per_s", limit.bytes_per_s_few_sms},
          {"all_sms", limit.all_sms},
          {"all_sms_bytes_per_s", limit.bytes_per_s_all_sms},
          {"buffer_bytes_per_rank", limit.buffer_bytes}};
}

Json copy_json(const CopyLimit& limit) {
  return {{"method", limit.method},
          {"memcpy_bytes_per_s", limit.memcpy_bytes_per_s},
          {"streaming_bytes_per_s", limit.streaming_bytes_per_s},
          {"working_set_bytes_per_rank", limit.working_set_bytes}};
}

/// How many assignments the experts get.
Json experts_json(const std::vector<RoutingTable>& tables) {
  constexpr int kNumBins = 16;
  std::vector<std::int64_t> loads(static_cast<std::size_t>(tables.front().num_experts));
  for (const RoutingTable& table : tables) {
    for (const std::int32_t expert : table.expert_ids) {
      if (expert >= 0) ++loads[static_cast<std::size_t>(expert)];
    }
  }
  const html::Histogram histogram = html::make_histogram(loads, kNumBins);
  Json counts = Json::array();
  for (const auto& count : histogram.counts) counts.push_back(static_cast<std::int64_t>(*count));
  const auto [least, most] = std::minmax_element(loads.begin(), loads.end());
  return {{"min", *least}, {"max", *most}, {"assignments", histogram.labels}, {"num_experts", counts}};
}

/// What is set in the environment and changes how calls run.
Json environment_json() {
  constexpr std::array<std::string_view, 3> kCudaVariables = {
      "CUDA_VISIBLE_DEVICES=", "CUDA_DEVICE_MAX_CONNECTIONS=", "CUDA_MODULE_LOADING="};
  std::vector<std::pair<std::string, std::string>> found;
  for (const SettingInfo& info : settings().infos()) {
    if (info.origin == SettingOrigin::kEnvironment) found.emplace_back(info.name, info.value);
  }
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const bool counts =
        text.starts_with("NCCL_") || std::any_of(kCudaVariables.begin(), kCudaVariables.end(),
                                                 [&](std::string_view name) { return text.starts_with(name); });
    const std::size_t name_end = text.find('=');
    if (counts && name_end != std::string_view::npos) {
      found.emplace_back(text.substr(0, name_end), text.substr(name_end + 1));
    }
  }
  std::sort(found.begin(), found.end());
  Json environment = Json::object();
  for (const auto& [name, value] : found) environment[name] = value;
  return environment;
}

/// The fields `names` of `from`.
Json picked(const Json& from, std::initializer_list<std::string_view> names) {
  Json part = Json::object();
  for (const std::string_view name : names) part[std::string(name)] = from.at(std::string(name));
  return part;
}

}  // namespace

double bytes_per_s(std::int64_t num_bytes, double time_us) noexcept {
  return time_us > 0.0 ? static_cast<double>(num_bytes) / (time_us / kMicrosPerSecond) : 0.0;
}

std::string_view wire_name(const ResolvedConfig& config) noexcept {
  if (!config.quantises) return "as-given";
  if (config.quantised.scales == ScaleFormat::kUe8m0) return "fp8-ue8m0";
  if (config.quantised.order == ScaleOrder::kColumns) return "fp8-columns";
  return config.quantised.powers_of_two ? "fp8-pow2" : "fp8";
}

std::string cuda_version_text(int version) {
  constexpr int kMajor = 1000;
  constexpr int kMinor = 10;
  return fmt::format("{}.{}", version / kMajor, version % kMajor / kMinor);
}

std::string_view verification_name(const BenchPlan& plan, const BenchResult& result) noexcept {
  if (plan.spec.expectation == nullptr) return "off";
  return result.verified ? "passed" : "failed";
}

Json provenance_json(std::string_view tool, const Fingerprint& fingerprint) {
  return {{"tool", tool}, {"command", command_line()}, {"commit", built_commit()}, {"date", fingerprint.date_utc}};
}

Json config_json(const BenchPlan& plan) {
  const ResolvedConfig& config = plan.resolved;
  const CudaOptions& cuda = plan.spec.cuda;
  const bool on_cuda = plan.spec.device == Device::kCuda;
  return {{"model", plan.model.empty() ? Json(nullptr) : Json(plan.model)},
          {"hidden", config.hidden},
          {"num_experts", config.num_experts},
          {"top_k", config.top_k},
          {"dtype", to_string(config.dtype)},
          {"wire", wire_name(config)},
          {"layout", to_string(config.layout)},
          {"alignment", config.alignment},
          {"sizing", to_string(config.sizing)},
          {"capacity_rows", config.capacity_rows},
          {"overflow", to_string(config.overflow)},
          {"combine", to_string(config.order)},
          {"domain_size", config.ranks_of_domain(plan.num_ranks)},
          {"domains", plan.num_ranks / config.ranks_of_domain(plan.num_ranks)},
          {"weights", config.apply_weights},
          {"routing", plan.routing.to_string()},
          {"trace_layer", plan.trace_layer < 0 ? Json(nullptr) : Json(plan.trace_layer)},
          {"placement", plan.placement.empty() ? Json(nullptr) : Json(plan.placement)},
          {"router_capacity", plan.router_capacity},
          {"router_dropped", plan.dropped_by_router},
          {"zero_padding", config.zero_padding},
          {"device", to_string(plan.spec.device)},
          {"group", to_string(plan.group)},
          {"ranks", plan.num_ranks},
          {"tokens", config.max_tokens},
          {"tokens_per_rank", plan.tokens_per_rank},
          {"masked", plan.masked},
          {"workers", on_cuda ? Json(nullptr) : Json(plan.spec.host.num_workers)},
          {"sms", on_cuda && cuda.num_sms > 0 ? Json(cuda.num_sms) : Json(nullptr)},
          {"mover", on_cuda ? Json(to_string(cuda.mover)) : Json(nullptr)},
          {"profile", plan.profile ? Json(plan.profile->path) : Json(nullptr)},
          {"runs_per_sample", on_cuda ? Json(plan.spec.runs_per_sample) : Json(nullptr)},
          {"iterations", plan.spec.num_iterations},
          {"warmups", plan.spec.num_warmups},
          {"seed", plan.spec.seed},
          {"bind", plan.spec.bind},
          {"stage_combine", plan.spec.stage_combine}};
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

Json gpu_json(const BenchResult& result) {
  if (!result.cuda) return nullptr;
  const CudaRun& run = *result.cuda;
  return {{"name", run.gpu},
          {"driver", run.driver},
          {"driver_cuda", cuda_version_text(run.driver_cuda)},
          {"runtime_cuda", cuda_version_text(run.runtime_cuda)},
          {"sms", run.num_sms},
          {"visible_gpus", run.num_visible_gpus},
          {"used_gpus", run.num_used_gpus},
          {"device_of_rank", run.device_of}};
}

Json versions_json(const Fingerprint& fingerprint) {
  return {{"epistle", fingerprint.epistle_version}, {"compiler", fingerprint.compiler},
          {"build_type", fingerprint.build_type},   {"simd", fingerprint.simd_target},
          {"fmt", fingerprint.fmt_version},         {"highway", fingerprint.highway_version},
          {"hwloc", fingerprint.hwloc_version}};
}

Json limit_json(const BenchResult& result) {
  return result.cuda ? link_json(result.cuda->limit) : copy_json(result.limit);
}

Json network_json(const BenchResult& result) {
  if (!result.network) return nullptr;
  return {{"limit_bytes_per_s", result.network->bytes_per_s}, {"transports", result.network->transports}};
}

Json load_json(const BenchPlan& plan, const BenchResult& result) {
  return {{"rows_max_over_mean", result.load.rows_max_over_mean},
          {"assignments_max_over_mean", result.load.assignments_max_over_mean},
          {"max_rows", result.load.max_rows},
          {"padding_rows", result.load.padding_rows},
          {"dropped", result.load.dropped},
          {"experts", experts_json(plan.tables)}};
}

Json phase_json(const PhaseResult& phase, bool on_cuda) {
  return {{"dispatcher", phase.dispatcher},
          {"phase", to_string(phase.phase)},
          {"median_us", phase.time_us.median},
          {"p10_us", phase.time_us.p10},
          {"p90_us", phase.time_us.p90},
          {"p99_us", phase.time_us.p99},
          {"min_us", phase.time_us.min},
          {"max_us", phase.time_us.max},
          {"algorithm_bytes", phase.algorithm_bytes},
          {"wire_bytes", phase.wire_bytes},
          {"own_bytes", phase.link_bytes.own},
          {"domain_bytes", phase.link_bytes.domain},
          {"network_bytes", phase.link_bytes.network},
          {"moved_bytes", phase.moved_bytes},
          {"algorithm_bytes_per_s", bytes_per_s(phase.algorithm_bytes, phase.time_us.median)},
          {"wire_bytes_per_s", bytes_per_s(phase.wire_bytes, phase.time_us.median)},
          {on_cuda ? "link_fraction" : "limit_fraction", phase.limit_fraction}};
}

Json phases_json(const BenchResult& result) {
  Json results = Json::array();
  for (const PhaseResult& phase : result.phases) {
    Json entry = phase_json(phase, result.cuda.has_value());
    if (result.network) entry["network_fraction"] = phase.network_fraction;
    results.push_back(std::move(entry));
  }
  return results;
}

Json stack_json(const BenchPlan& plan, const BenchResult& result) {
  const Json config = config_json(plan);
  Json devices = picked(machine_json(), {"cpu", "architecture", "kernel", "packages", "numa_nodes", "cores",
                                         "processing_units", "usable_processing_units", "memory_bytes"});
  if (result.cuda) {
    const Json gpu = gpu_json(result);
    devices.update(picked(gpu, {"sms", "visible_gpus", "used_gpus", "device_of_rank"}));
    devices["gpu"] = gpu.at("name");
  }
  Json versions = versions_json(make_fingerprint());
  if (result.cuda) versions.update(picked(gpu_json(result), {"driver", "driver_cuda", "runtime_cuda"}));
  Json routing = picked(config, {"routing", "trace_layer", "router_capacity", "seed"});
  routing["hash"] = routing_hash(plan.tables);
  return {{"versions", versions},
          {"devices", devices},
          {"routing", routing},
          {"shape", picked(config, {"device", "group", "ranks", "tokens_per_rank", "hidden", "num_experts", "top_k",
                                    "dtype", "wire", "layout", "alignment", "sizing", "capacity_rows", "overflow",
                                    "combine", "weights", "zero_padding"})},
          {"method",
           {{"workers", config.at("workers")},
            {"sms", config.at("sms")},
            {"mover", config.at("mover")},
            {"bind", config.at("bind")},
            {"stage_combine", config.at("stage_combine")},
            {"runs_per_sample", config.at("runs_per_sample")},
            {"chained_pairs", plan.spec.num_chained_pairs},
            {"graph_replays", plan.spec.num_replays}}},
          {"environment", environment_json()}};
}

std::string routing_hash(const std::vector<RoutingTable>& tables) {
  // FNV-1a, 64 bits, over 32-bit words instead of bytes.
  constexpr std::uint64_t kOffset = 0xcbf29ce484222325;
  constexpr std::uint64_t kPrime = 0x100000001b3;
  std::uint64_t hash = kOffset;
  const auto add = [&hash](std::uint32_t word) { hash = (hash ^ word) * kPrime; };
  for (const RoutingTable& table : tables) {
    add(static_cast<std::uint32_t>(table.num_tokens));
    for (const std::int32_t id : table.expert_ids) add(static_cast<std::uint32_t>(id));
    for (const float weight : table.weights) add(std::bit_cast<std::uint32_t>(weight));
  }
  return fmt::format("{:016x}", hash);
}

}  // namespace epistle::cli
