#include "compare_packages.hpp"

#include <algorithm>
#include <chrono>
#include <utility>

#include <fmt/format.h>

#include "compare_record.hpp"
#include "core/reject.hpp"
#include "measure/statistics.hpp"
#include "record_parts.hpp"

namespace epistle::cli {
namespace {

constexpr int kNumBlocks = 2;

/// Why no package can be measured by this plan; empty where they can.
std::string reason_against_all(const PackageOptions& options, const BenchPlan& plan) {
  if (options.python.empty()) return "no --python names the interpreter that has it";
  if (plan.resolved.dtype != DType::kBf16 || plan.resolved.quantises) {
    return "packages are measured with rows of bf16 as they are (--dtype bf16, --wire as-given)";
  }
  if (plan.spec.chain_in_graph) return "packages are launched by the host; leave --graph out";
  if (plan.resolved.num_experts % plan.num_ranks != 0) {
    return fmt::format("{} experts do not divide over {} ranks", plan.resolved.num_experts, plan.num_ranks);
  }
  return {};
}

/// The level that a probe got stuck at, with its reason.
std::string failure_of(const ProbeResult& result) {
  if (result.steady.value_or(false)) return {};
  if (!result.imported.value_or(false)) return "not imported: " + result.reason;
  if (!result.initialised.value_or(false)) return "its buffers were not made: " + result.reason;
  return "no steady iterations: " + result.reason;
}

void append(std::vector<double>& target, const std::vector<double>& more) {
  target.insert(target.end(), more.begin(), more.end());
}

/// What bytes travel is known of the package alone.
PhaseResult phase_of(const std::string& name, BenchPhase phase, const std::vector<double>& samples_us) {
  return {.dispatcher = name, .phase = phase, .time_us = summarize(samples_us), .link_bytes = {}};
}

}  // namespace

void take_package_names(BenchOptions& bench, PackageOptions& packages) {
  std::vector<std::string> own;
  for (std::string& name : bench.dispatchers) {
    if (!is_package(name)) {
      own.push_back(std::move(name));
      continue;
    }
    if (std::find(packages.names.begin(), packages.names.end(), name) != packages.names.end()) {
      reject(fmt::format("--dispatcher names '{}' twice; give every dispatcher once", name));
    }
    packages.names.push_back(std::move(name));
  }
  bench.dispatchers = std::move(own);
}

PackageBlocks::PackageBlocks(const PackageOptions& options, const BenchPlan& plan) : options_(options), plan_(plan) {
  const std::string reason = reason_against_all(options, plan);
  for (const std::string& name : options.names) {
    packages_.push_back({.name = name, .unavailable = reason, .last = {}, .times = {}});
  }
}

void PackageBlocks::run(Progress& progress) {
  const std::string hash = routing_hash(plan_.tables);
  for (Package& package : packages_) {
    if (!package.unavailable.empty()) continue;
    progress.begin(fmt::format("running {}", package.name));
    package.last = run_probe({.package = package.name,
                              .python = options_.python,
                              .on_gpu = plan_.spec.device == Device::kCuda,
                              .hidden = plan_.resolved.hidden,
                              .seed = plan_.spec.seed,
                              .tables = plan_.tables,
                              .warmups = plan_.spec.num_warmups,
                              .rounds = (plan_.spec.num_iterations + kNumBlocks - 1) / kNumBlocks,
                              .pairs = plan_.spec.num_chained_pairs,
                              .limit = std::chrono::seconds(options_.limit_s)});
    package.unavailable = failure_of(package.last);
    if (package.unavailable.empty() && package.last.routing_hash != hash) {
      package.unavailable = fmt::format("it saw another routing, {} instead of {}", package.last.routing_hash, hash);
    }
    append(package.times.period_us, package.last.times.period_us);
    append(package.times.dispatch_us, package.last.times.dispatch_us);
    append(package.times.combine_us, package.last.times.combine_us);
  }
}

void PackageBlocks::add_to(Json& document) const {
  const bool on_cuda = plan_.spec.device == Device::kCuda;
  for (const Package& package : packages_) {
    if (!package.unavailable.empty()) {
      document["dispatchers"].push_back(
          {{"dispatcher", package.name}, {"status", "unavailable"}, {"reason", package.unavailable}});
      continue;
    }
    const auto& bytes = package.last.device_bytes;
    document["dispatchers"].push_back(
        {{"dispatcher", package.name},
         {"status", "measured"},
         {"period_us", percentiles_json(package.times.period_us)},
         {"in_graph", false},
         {"memory",
          {{"bytes", bytes ? Json(*bytes) : Json(nullptr)},
           {"method", "free memory of its GPUs, before its buffers were made and after its first iterations"},
           {"max_buffer_bytes", nullptr},
           {"as_predicted", nullptr}}},
         {"wire_bytes_per_pair", nullptr},
         {"package",
          {{"version", package.last.version},
           {"stack", package.last.stack},
           {"blocks", kNumBlocks},
           {"order", "one block of its rounds before the other dispatchers, one after them"},
           {"routing_hash", package.last.routing_hash},
           {"checked", "received rows bit by bit, sums within 8 units of the last place of bf16"},
           {"kernels", package.last.kernels}}}});
    document["results"].push_back(
        phase_json(phase_of(package.name, BenchPhase::kDispatch, package.times.dispatch_us), on_cuda));
    document["results"].push_back(
        phase_json(phase_of(package.name, BenchPhase::kCombine, package.times.combine_us), on_cuda));
  }
}

}  // namespace epistle::cli
