#include "bench_contenders.hpp"

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include <fmt/format.h>

#include "epistle/dispatcher_info.hpp"
#include "epistle/error.hpp"

#include "core/reject.hpp"
#include "measure/bench_collector.hpp"

namespace epistle::cli {
namespace {

constexpr std::string_view kOfProfile = "profile";  // a contender

/// Why a dispatcher cannot be compared, or nothing.
std::optional<std::string> reason_against(const DispatcherInfo& info, const BenchPlan& plan) {
  if (plan.spec.chain_in_graph && !info.capabilities().graph_capture)
    return "its calls cannot be captured into a graph";
  return info.cannot_serve(plan.spec.config, plan.num_ranks, plan.spec.domain_size);
}

}  // namespace

void adopt_profile(const BenchOptions& options, BenchPlan& plan) {
  if (options.profile.empty()) return;
  plan.profile = read_profile(options.profile);
  if (plan.profile->device != plan.spec.device) {
    reject(fmt::format("--profile {} is for --device {}; the device is {}", options.profile,
                       to_string(plan.profile->device), options.device));
  }
  if (options.compares) return;
  const std::pair<bool, std::string_view> set_by_it[] = {{!options.dispatchers.empty(), "--dispatcher"},
                                                         {options.num_workers > 0, "--workers"},
                                                         {options.num_sms > 0, "--sms"},
                                                         {!options.mover.empty(), "--mover"}};
  for (const auto& [given, name] : set_by_it) {
    if (given) reject(fmt::format("{} is what --profile sets; give one of them", name));
  }
  const ProfileSettings& settings = plan.profile->settings;
  plan.spec.dispatchers = {settings.dispatcher};
  plan.spec.host = settings.host;
  plan.spec.cuda = settings.cuda;
  plan.spec.config.num_buffers = settings.num_buffers;
}

void choose_contenders(BenchPlan& plan) {
  for (const std::string& name : plan.spec.dispatchers) {
    if (auto reason = reason_against(find_dispatcher(name, plan.spec.device), plan)) {
      plan.unavailable.push_back({.name = name, .reason = std::move(*reason)});
    } else {
      plan.spec.contenders.push_back(contender_of(plan.spec, name));
    }
  }
  if (plan.profile) {
    const ProfileSettings& settings = plan.profile->settings;
    if (auto reason = reason_against(find_dispatcher(settings.dispatcher, plan.spec.device), plan)) {
      plan.unavailable.push_back({.name = std::string(kOfProfile), .reason = std::move(*reason)});
    } else {
      plan.spec.contenders.push_back({.name = std::string(kOfProfile),
                                      .dispatcher = settings.dispatcher,
                                      .host = settings.host,
                                      .cuda = settings.cuda,
                                      .num_buffers = settings.num_buffers});
    }
  }
  if (!plan.spec.contenders.empty()) return;
  const Unavailable& first = plan.unavailable.front();
  throw Error(ErrorCode::kUnsupported, fmt::format("there is nothing to measure; {}: {}", first.name, first.reason));
}

void check_chain_in_graph(const BenchSpec& spec) {
  if (!spec.chain_in_graph) return;
  if (spec.device != Device::kCuda) reject("--graph belongs to --device cuda; the device is host");
  if (std::holds_alternative<Capacity>(spec.config.sizing)) return;
  reject("--graph needs static shapes: give --sizing capacity and --capacity-rows ROWS; the sizing is exact");
}

}  // namespace epistle::cli
