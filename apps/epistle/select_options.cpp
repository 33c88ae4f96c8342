#include "select_options.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "epistle/error.hpp"

#include "cluster_option.hpp"
#include "core/json_field.hpp"
#include "doctor_hardware.hpp"
#include "json_text.hpp"
#include "not_empty.hpp"
#include "number_options.hpp"
#include "output.hpp"
#include "select/backends.hpp"
#include "topology/cluster.hpp"
#include "topology/nic.hpp"
#include "topology/nvml.hpp"

namespace epistle::cli {
namespace {

constexpr std::int64_t kSelectOptionsMaxHidden = std::int64_t{1} << 24;
constexpr std::int64_t kMaxExperts = 1 << 20;
constexpr std::int64_t kSelectOptionsMaxEp = 4096;
constexpr std::int64_t kSelectOptionsMaxTokens = std::int64_t{1} << 28;

template <typename Value, std::size_t kSize>
Value parse_name(std::string_view name, const std::array<Value, kSize>& values) {
  // CLI11 has checked that it is one of them.
  const auto* const found =
      std::find_if(values.begin(), values.end(), [&](Value value) { return to_string(value) == name; });
  return found == values.end() ? values.front() : *found;
}

std::optional<Version> read_version(const std::string& option, const std::string& text) {
  if (text.empty()) return std::nullopt;
  const auto version = parse_version(text);
  if (!version) throw CLI::ValidationError(option, fmt::format("'{}' is no version such as 0.20", shortened(text)));
  return version;
}

/// The cards that carry something, in place of the preset's, where there are any: a machine without cards for RDMA may
/// have a network all the same.
void set_nics(Cluster& cluster, const std::vector<NicPort>& nics, std::size_t num_gpus) {
  double num_active = 0;
  double slowest = 0;
  for (const NicPort& nic : nics) {
    if (nic.state.find("ACTIVE") == std::string::npos || nic.gigabits_per_s <= 0) continue;
    ++num_active;
    slowest = slowest > 0 ? std::min(slowest, nic.gigabits_per_s) : nic.gigabits_per_s;
  }
  if (num_active == 0 || num_gpus == 0) return;
  constexpr double kBytesPerGigabit = 1e9 / 8;
  cluster.constant(ClusterField::kNicsPerGpu) = {
      .value = num_active / static_cast<double>(num_gpus), .source = "the cards of this machine", .date = {}};
  cluster.constant(ClusterField::kNicBytesPerS) = {
      .value = slowest * kBytesPerGigabit, .source = "the cards of this machine", .date = {}};
}

/// This machine, by its driver: the preset of its GPU, with the GPUs that reach each other.
Cluster local_hardware() {
  const NvmlProbe probe = probe_nvml();
  Cluster cluster = find_cluster(preset_of(probe));
  std::size_t largest = 0;
  for (const auto& group : nvlink_groups(probe)) largest = std::max(largest, group.size());
  // Of a rack this machine sees its own GPUs only.
  const bool rack = !probe.gpus.empty() && !probe.gpus.front().fabric_cluster.empty();
  if (largest > 0 && !rack) cluster.constant(ClusterField::kGpusPerDomain).value = static_cast<double>(largest);
  set_nics(cluster, probe_nics(), probe.gpus.size());
  return cluster;
}

/// A preset, a file of a cluster, or a report of doctor; without one the machine of --doctor, where its report says it.
std::optional<Cluster> named_hardware(const SelectOptions& options) {
  const std::string& name = options.hardware;
  if (name.empty()) return options.doctor.empty() ? std::nullopt : hardware_of_report(options.doctor);
  if (name.ends_with(".json") || name.find('/') != std::string::npos) {
    if (auto cluster = hardware_of_report(name)) return cluster;
  }
  return cluster_of_option(name);
}

void read_assumed(const std::string& list, SelectQuery& query) {
  query.availability = "among what --assume names";
  if (list == "none") return;
  std::size_t begin = 0;
  while (begin <= list.size()) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    const std::string name = list.substr(begin, end - begin);
    if (name == "all") {
      for (const SelectBackend& backend : select_backends()) query.available.insert(std::string(backend.name));
    } else if (!name.empty()) {
      query.available.insert(std::string(find_backend(name).name));
    }
    begin = end + 1;
  }
}

void read_doctor(const std::string& path, SelectQuery& query) {
  const auto report = read_json_file(path);
  if (!report.is_object() || !report.contains("backends") || !report["backends"].is_array()) {
    throw Error(ErrorCode::kCorruptInput,
                fmt::format("{}: backends: must be the list that 'epistle doctor --json' writes", path));
  }
  query.availability = fmt::format("available by {}", path);
  for (const auto& backend : report["backends"]) {
    if (!backend.is_object() || !backend.contains("name") || !backend["name"].is_string() ||
        !backend.contains("available") || !backend["available"].is_boolean()) {
      throw Error(ErrorCode::kCorruptInput, fmt::format("{}: backends: every entry needs name and available", path));
    }
    if (backend["available"].get<bool>())
      query.available.insert(std::string(find_backend(backend["name"].get<std::string>()).name));
  }
}

}  // namespace

void add_select_options(CLI::App& command, SelectOptions& options) {
  const auto add_choice = [&](const char* name, std::string& value, std::vector<std::string> choices, const char* text,
                              const char* type) {
    command.add_option(name, value, text)->check(CLI::IsMember(std::move(choices)).description(""))->type_name(type);
  };
  command
      .add_option(
          "--hardware", options.hardware,
          "A preset (h100-hgx, gb200-nvl72, ...), a JSON file of a cluster, or a report of 'epistle doctor --json' "
          "(default: the machine of --doctor, or this one)")
      ->check(not_empty())
      ->type_name("NAME");
  add_number(command, "--ep", options.ep, {1, kSelectOptionsMaxEp},
             "Expert-parallel degree: ranks that share one set of experts");
  command.add_option("--model", options.model, "Shape of a published model; see 'epistle models'")
      ->check(not_empty())
      ->type_name("NAME");
  add_number(command, "--hidden", options.hidden, {1, kSelectOptionsMaxHidden},
             "Elements per row, instead of the model's");
  add_number(command, "--experts", options.num_experts, {1, kMaxExperts}, "Experts, instead of the model's");
  add_number(command, "--top-k", options.top_k, {1, kMaxExperts}, "Experts per token, instead of the model's")
      ->type_name("K");
  command.add_flag("--vision", options.vision, "The model sees pictures, too");
  add_choice("--precision", options.precision, {"bf16", "fp8", "mxfp8", "nvfp4"},
             "What rows travel in: bf16 (default), fp8, mxfp8 or nvfp4", "TYPE");
  add_choice("--phase", options.phase, {"training", "prefill", "decode"}, "training (default), prefill or decode",
             "PHASE");
  add_number(command, "--tokens", options.tokens, {1, kSelectOptionsMaxTokens}, "Tokens per rank and call");
  add_choice("--memory", options.memory, {"normal", "tight"}, "Memory pressure: normal (default) or tight", "PRESSURE");
  add_choice("--fabric", options.fabric, {"unknown", "infiniband", "roce", "efa"},
             "Network between domains: unknown (default), infiniband, roce or efa", "FABRIC");
  command.add_flag("--unequal-tokens", options.unequal_tokens, "Ranks may bring different numbers of tokens");
  command.add_option("--assume", options.assume, "Backends that are installed, separated by commas, or none, or all")
      ->check(not_empty())
      ->type_name("LIST");
  command.add_option("--doctor", options.doctor, "Take what is installed from a report of 'epistle doctor --json'")
      ->check(not_empty())
      ->type_name("FILE");
  for (const auto& [name, value, engine] :
       {std::tuple{"--megatron-version", &options.megatron_version, "Megatron core"},
        std::tuple{"--vllm-version", &options.vllm_version, "vLLM"},
        std::tuple{"--sglang-version", &options.sglang_version, "SGLang"}}) {
    command.add_option(name, *value, fmt::format("Version of {} (default: the newest that is known)", engine))
        ->check(not_empty())
        ->type_name("V");
  }
  command
      .add_option("--check", options.check,
                  "Check a command line (shell script) or YAML of Megatron, vLLM or SGLang; '-' = standard input")
      ->check(not_empty())
      ->type_name("FILE");
  add_choice("--fail-on", options.fail_on, {"error", "warning"},
             "With --check: exit with 1 on findings of that severity or above (default: never)", "SEVERITY");
}

SelectQuery make_select_query(const SelectOptions& options) {
  if (options.ep == 0) throw CLI::ValidationError("--ep", "is missing; give the expert-parallel degree");
  SelectQuery query;
  const std::optional<Cluster> named = named_hardware(options);
  query.cluster = named ? *named : local_hardware();
  query.ep = static_cast<std::int32_t>(options.ep);
  if (!options.model.empty()) query.model = find_select_model(options.model);
  if (options.hidden > 0) query.model.hidden = options.hidden;
  if (options.num_experts > 0) query.model.num_experts = static_cast<std::int32_t>(options.num_experts);
  if (options.top_k > 0) query.model.top_k = static_cast<std::int32_t>(options.top_k);
  if (query.model.hidden == 0 || query.model.num_experts == 0 || query.model.top_k == 0) {
    throw CLI::ValidationError("--model", "is missing; name one, or give --hidden, --experts and --top-k");
  }
  if (options.vision) query.model.family = ModelFamily::kVision;
  query.precision = parse_name(options.precision,
                               std::array{Precision::kBf16, Precision::kFp8, Precision::kMxfp8, Precision::kNvfp4});
  query.phase = parse_name(options.phase, std::array{WorkPhase::kTraining, WorkPhase::kPrefill, WorkPhase::kDecode});
  query.fabric =
      parse_name(options.fabric, std::array{Fabric::kUnknown, Fabric::kInfiniBand, Fabric::kRoce, Fabric::kEfa});
  query.memory_tight = options.memory == "tight";
  query.unequal_tokens = options.unequal_tokens;
  if (options.tokens > 0) query.tokens_per_rank = options.tokens;
  if (!options.assume.empty() && !options.doctor.empty())
    throw CLI::ValidationError("--doctor", "and --assume exclude each other; give one");
  if (!options.assume.empty()) read_assumed(options.assume, query);
  if (!options.doctor.empty()) read_doctor(options.doctor, query);
  query.megatron = read_version("--megatron-version", options.megatron_version).value_or(kNewestMegatron);
  query.vllm = read_version("--vllm-version", options.vllm_version);
  query.sglang = read_version("--sglang-version", options.sglang_version);
  return query;
}

check::CheckOptions make_check_options(const SelectOptions& options) {
  check::CheckOptions check;
  check.cluster = named_hardware(options);
  // Of that one neither domains nor GPUs are known.
  if (check.cluster && check.cluster->name == "unknown") check.cluster.reset();
  check.megatron = read_version("--megatron-version", options.megatron_version);
  check.vllm = read_version("--vllm-version", options.vllm_version);
  check.sglang = read_version("--sglang-version", options.sglang_version);
  return check;
}

}  // namespace epistle::cli
