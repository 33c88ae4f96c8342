// What a dispatcher's folder gives beside its description: how it is asked, and how it is made.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "epistle/dispatcher.hpp"

#include "dispatch/call/dispatcher_impl.hpp"
#include "dispatch/call/resolved_config.hpp"
#include "group/group_impl.hpp"
#include "layout/buffer_plan.hpp"

namespace epistle {

/// What a dispatcher is made from; all ranks have agreed on `config`.
struct Creation {
  std::shared_ptr<GroupImpl> group;
  DispatcherIdentity identity;
  ResolvedConfig config;
  DeviceOptions options;
};

struct DispatcherInfo::Functions {
  /// Limits that capabilities do not say. May be null.
  std::optional<std::string> (*cannot_serve)(const ResolvedConfig& config, int num_ranks) = nullptr;
  /// The memory that all ranks address.
  BufferPlan (*plan)(const ResolvedConfig& config, int num_ranks) = nullptr;
  /// What a rank takes besides. May be null. `query.options` are of the dispatcher's device.
  std::vector<MemorySection> (*own_memory)(const ResolvedConfig& config, const MemoryQuery& query) = nullptr;
  /// Tokens of a rank up to which a round trip takes less time than with `direct`; 0 = never. May be null.
  std::int64_t (*best_up_to)(const ResolvedConfig& config, int num_ranks) = nullptr;
  /// This rank's own checks of its options and its machine, before any rank does anything. Throws. May be null.
  void (*check)(const ResolvedConfig& config, const DeviceOptions& options, const Group& group) = nullptr;
  /// Collective.
  std::unique_ptr<DispatcherImpl> (*create)(const Creation& creation) = nullptr;

  [[nodiscard]] static const Functions& of(const DispatcherInfo& info) noexcept { return *info.functions_; }
};

/// The memory that all ranks address, by what it is for.
[[nodiscard]] std::vector<MemorySection> shared_memory(const BufferPlan& plan);

/// What every dispatcher of today can do, on either device: all layouts, payloads, sizings, orders and backward passes.
[[nodiscard]] Capabilities common_capabilities();

/// Throws kUnsupported where `options` ask for what the dispatcher cannot do, and kInvalidArgument where they are none.
void check_options(const DispatcherInfo& info, const DeviceOptions& options);

/// `config` with an order: its own, or the dispatcher's.
[[nodiscard]] DispatcherConfig with_order_of(const Capabilities& can, DispatcherConfig config);

}  // namespace epistle
