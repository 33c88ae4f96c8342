#include "dispatch/registry/registry.hpp"

#include <memory>
#include <vector>

#include <fmt/format.h>

#include "core/complaint.hpp"
#include "dispatch/auto/auto_info.hpp"
#include "dispatch/call/dispatcher_functions.hpp"
#include "dispatch/cuda/alltoall/alltoall_info.hpp"
#include "dispatch/cuda/direct/direct_info.hpp"
#include "dispatch/cuda/hybrid/hybrid_info.hpp"
#include "dispatch/cuda/low_latency/low_latency_info.hpp"
#include "dispatch/host/alltoall/alltoall_info.hpp"
#include "dispatch/host/direct/direct_info.hpp"
#include "dispatch/host/hybrid/hybrid_info.hpp"
#include "dispatch/host/low_latency/low_latency_info.hpp"
#include "dispatch/reference/reference_info.hpp"

namespace epistle {
namespace {

std::vector<const DispatcherInfo*>& entries() {
  static std::vector<const DispatcherInfo*> all = {
      &host::direct_info(),    &host::low_latency_info(),    &automatic::host_info(), &host::alltoall_info(),
      &host::hybrid_info(),    &reference::reference_info(), &cuda::direct_info(),    &cuda::low_latency_info(),
      &automatic::cuda_info(), &cuda::alltoall_info(),       &cuda::hybrid_info(),
  };
  return all;
}

const DispatcherInfo* look_up(std::string_view name, Device device) noexcept {
  for (const DispatcherInfo* info : entries()) {
    if (info->name() == name && info->device() == device) return info;
  }
  return nullptr;
}

int domain_size_of(const Group& group, Device device) noexcept {
  return device == Device::kCuda ? group.gpu_domain_size() : group.domain_size();
}

/// Those that do not go by links put rows, counts and records into the memory of every rank.
void check_reach(const DispatcherInfo& info, const Group& group) {
  if (group.num_hosts() == 1 || info.capabilities().joins_hosts) return;
  if (info.device() == Device::kCuda && group.gpu_domain_size() == group.size()) return;
  throw Error(
      ErrorCode::kUnsupported,
      fmt::format(
          "the dispatcher '{}' needs ranks that reach each other's memory, and the {} ranks of this group "
          "are on {} hosts{}; form a group of the ranks of one host, or take one that joins hosts (hybrid, alltoall)",
          info.name(), group.size(), group.num_hosts(),
          info.device() == Device::kCuda ? ", which no NVLink fabric joins (epistle doctor says why)" : ""));
}

void check_mask(const DispatcherInfo& info, const GroupImpl& group) {
  if (info.capabilities().masks || group.masked_ranks().empty()) return;
  throw Error(
      ErrorCode::kUnsupported,
      fmt::format("the dispatcher '{}' on {} waits for all ranks, and ranks of this group are masked out; take one "
                  "whose Capabilities::masks says so",
                  info.name(), to_string(info.device())));
}

void check_build(const DispatcherInfo& info) {
  const std::string_view missing = info.capabilities().missing;
  if (!missing.empty()) throw Error(ErrorCode::kUnsupported, std::string(missing));
}

}  // namespace

void register_dispatcher(const DispatcherInfo& info) {
  if (look_up(info.name(), info.device()) != nullptr) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("there is a dispatcher '{}' on {} already", info.name(), to_string(info.device())));
  }
  entries().push_back(&info);
}

const std::vector<const DispatcherInfo*>& dispatchers() noexcept { return entries(); }

const DispatcherInfo& find_dispatcher(std::string_view name, Device device) {
  if (const DispatcherInfo* info = look_up(name, device)) return *info;
  std::string known;
  for (const DispatcherInfo* info : entries()) {
    if (info->device() == device) known += fmt::format(" {}", info->name());
  }
  throw Error(ErrorCode::kNotFound,
              fmt::format("there is no dispatcher '{}' on {}; known:{}", name, to_string(device), known));
}

Dispatcher::Dispatcher(Group& group, std::string_view name, const DispatcherConfig& config,
                       const DeviceOptions& options) {
  const Device device = std::holds_alternative<CudaOptions>(options) ? Device::kCuda : Device::kHost;
  Creation creation{
      .group = group.share(), .identity = {.info = nullptr, .config = config}, .config = {}, .options = options};
  const Complaint complaint = attempt([&] {
    const DispatcherInfo& info = find_dispatcher(name, device);
    creation.identity.info = &info;
    check_build(info);
    check_options(info, options);
    creation.identity.config = with_order_of(info.capabilities(), config);
    const int domain_size = domain_size_of(group, device);
    creation.config = resolve_config(creation.identity.config, group.size(), domain_size);
    creation.config.spans_hosts = group.num_hosts() > 1;
    if (const auto reason = info.cannot_serve(creation.identity.config, group.size(), domain_size)) {
      throw Error(ErrorCode::kUnsupported, *reason);
    }
    const auto& functions = DispatcherInfo::Functions::of(info);
    if (functions.check != nullptr) functions.check(creation.config, options, group);
    check_reach(info, group);
    check_mask(info, group.impl());
  });
  // A rank with a bad configuration tells the others before it throws: nobody waits for it.
  GroupImpl& impl = group.impl();
  agree_on_config(impl, creation.config, {name, device}, complaint);
  impl.take_together({.kind = CallKind::kCreateDispatcher}, Phase::kCreate,
                     [&] { impl_ = DispatcherInfo::Functions::of(*creation.identity.info).create(creation); });
}

}  // namespace epistle
