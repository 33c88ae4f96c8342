#include "dispatch/auto/auto_info.hpp"

#include <algorithm>
#include <optional>

#include "dispatch/auto/auto_dispatcher.hpp"
#include "dispatch/call/dispatcher_functions.hpp"
#include "dispatch/cuda/direct/direct_info.hpp"
#include "dispatch/cuda/low_latency/low_latency_info.hpp"
#include "dispatch/host/direct/direct_info.hpp"
#include "dispatch/host/low_latency/low_latency_info.hpp"

namespace epistle::automatic {
namespace {

using Functions = DispatcherInfo::Functions;

/// A device, and its dispatchers for few and for many tokens.
struct OnHost {
  static constexpr Device kDevice = Device::kHost;
  static const DispatcherInfo& few() { return host::low_latency_info(); }
  static const DispatcherInfo& many() { return host::direct_info(); }
};
struct OnCuda {
  static constexpr Device kDevice = Device::kCuda;
  static const DispatcherInfo& few() { return cuda::low_latency_info(); }
  static const DispatcherInfo& many() { return cuda::direct_info(); }
};

/// What the dispatcher for few tokens is made with. Nothing where it is never the faster one.
template <typename On>
std::optional<ResolvedConfig> config_of_few(const ResolvedConfig& config, int num_ranks) {
  const Functions& few = Functions::of(On::few());
  const Capabilities& can = On::few().capabilities();
  if (can.max_top_k > 0 && config.top_k > can.max_top_k) return std::nullopt;
  ResolvedConfig smaller = config;
  smaller.max_tokens = std::min(few.best_up_to(config, num_ranks), config.max_tokens);
  if (smaller.max_tokens == 0) return std::nullopt;
  if (few.cannot_serve != nullptr && few.cannot_serve(smaller, num_ranks)) return std::nullopt;
  return smaller;
}

/// Whether every call goes to the dispatcher for few tokens: then it is the only one that there is.
bool takes_all(const std::optional<ResolvedConfig>& few, const ResolvedConfig& config) {
  return few && few->max_tokens == config.max_tokens;
}

void add_memory(std::vector<MemorySection>& sections, const Functions& of, const ResolvedConfig& config,
                const MemoryQuery& query) {
  if (of.own_memory == nullptr) return;
  for (const MemorySection& section : of.own_memory(config, query)) sections.push_back(section);
}

template <typename On>
BufferPlan plan_of_main(const ResolvedConfig& config, int num_ranks) {
  const bool few = takes_all(config_of_few<On>(config, num_ranks), config);
  return Functions::of(few ? On::few() : On::many()).plan(config, num_ranks);
}

/// All but plan_of_main().
template <typename On>
std::vector<MemorySection> memory_besides(const ResolvedConfig& config, const MemoryQuery& query) {
  std::vector<MemorySection> sections;
  const auto few = config_of_few<On>(config, query.num_ranks);
  if (takes_all(few, config)) {
    add_memory(sections, Functions::of(On::few()), *few, query);
    return sections;
  }
  add_memory(sections, Functions::of(On::many()), config, query);
  if (few) {
    const Functions& of = Functions::of(On::few());
    for (const MemorySection& section : shared_memory(of.plan(*few, query.num_ranks))) sections.push_back(section);
    add_memory(sections, of, *few, query);
  }
  return sections;
}

template <typename On>
void check_parts(const ResolvedConfig& config, const DeviceOptions& options, const Group& group) {
  const auto few = config_of_few<On>(config, group.size());
  if (!takes_all(few, config)) Functions::of(On::many()).check(config, options, group);
  if (few) {
    check_options(On::few(), options);
    Functions::of(On::few()).check(*few, options, group);
  }
}

/// Its errors speak of `auto`.
AutoDispatcher::Part create_part(const DispatcherInfo& info, const Creation& creation, const ResolvedConfig& config) {
  Creation part = creation;
  part.identity.config.max_tokens = config.max_tokens;
  part.identity.part = &info;
  part.config = config;
  return {info.name(), Functions::of(info).create(part)};
}

template <typename On>
std::unique_ptr<DispatcherImpl> create_parts(const Creation& creation) {
  const auto config = config_of_few<On>(creation.config, creation.group->num_ranks());
  AutoDispatcher::Part few{On::few().name(), nullptr};
  if (takes_all(config, creation.config)) {
    return std::make_unique<AutoDispatcher>(creation.identity, std::move(few),
                                            create_part(On::few(), creation, *config), 0);
  }
  if (config) few = create_part(On::few(), creation, *config);
  AutoDispatcher::Part many = create_part(On::many(), creation, creation.config);
  return std::make_unique<AutoDispatcher>(creation.identity, std::move(few), std::move(many),
                                          config ? config->max_tokens : 0);
}

template <typename On>
const DispatcherInfo& info_on() {
  static constexpr Functions kFunctions = {
      .cannot_serve = [](const ResolvedConfig& config, int num_ranks) -> std::optional<std::string> {
        const Functions& many = Functions::of(On::many());
        return many.cannot_serve != nullptr ? many.cannot_serve(config, num_ranks) : std::nullopt;
      },
      .plan = plan_of_main<On>,
      .own_memory = memory_besides<On>,
      .check = check_parts<On>,
      .create = create_parts<On>};
  const auto capabilities = [] {
    Capabilities can = On::many().capabilities();
    can.late_weights = On::few().capabilities().late_weights;
    return can;
  };
  static const DispatcherInfo info(
      "auto", On::kDevice, "low_latency for calls of few tokens, direct for the others: for batches whose size changes",
      capabilities(), kFunctions);
  return info;
}

}  // namespace

const DispatcherInfo& host_info() { return info_on<OnHost>(); }
const DispatcherInfo& cuda_info() { return info_on<OnCuda>(); }

}  // namespace epistle::automatic
