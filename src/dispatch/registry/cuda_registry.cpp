// The dispatchers of the CUDA device, and which GPU a rank uses.
#include <array>
#include <cstdlib>
#include <optional>

#include <fmt/format.h>

#include "dispatch/call/config_check.hpp"
#include "dispatch/cuda/direct/direct.hpp"
#if EPISTLE_HAS_NCCL
#include "dispatch/cuda/alltoall/alltoall.hpp"
#endif
#include "gpu/cuda_error.hpp"

namespace epistle {
namespace {

using cuda::DirectDispatcher;

struct Entry {
  DispatcherInfo info;
  std::unique_ptr<CudaDispatcher> (*create)(Group& group, const DispatcherConfig& config, const CudaOptions& options,
                                            int device);
};

template <typename Implementation>
std::unique_ptr<CudaDispatcher> create(Group& group, const DispatcherConfig& config, const CudaOptions& options,
                                       int device) {
  return std::make_unique<Implementation>(group, config, options, device);
}

const std::vector<Entry>& entries() {
  static const std::vector<Entry> all = {
    {{DirectDispatcher::kName, "each row written once per (token, rank) straight to its final place"},
     create<DirectDispatcher>},
#if EPISTLE_HAS_NCCL
    {{nccl::AllToAllDispatcher::kName, "permute, one all-to-all-v over NCCL, unpermute; a GPU for every rank"},
     nccl::AllToAllDispatcher::create},
#endif
  };
  return all;
}

/// Kernels of ranks that share a GPU wait for each other, so their streams must not share a hardware queue. The driver
/// reads the number of queues once, when CUDA starts.
void ask_for_queues() { ::setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0); }

int choose_device(const CudaOptions& options, const Group& group, int num_devices) {
  if (options.device >= num_devices) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("device {} of {} visible GPUs; they are numbered from 0", options.device, num_devices));
  }
  if (options.device >= 0) return options.device;
  if (group.size() <= num_devices) return group.rank();
  return static_cast<int>(std::int64_t{group.rank()} * num_devices / group.size());
}

void check_mover(std::string_view name, const DispatcherConfig& config, const CudaOptions& options) {
  if (options.mover != CudaMover::kCopyEngines) return;
  if (name != DirectDispatcher::kName) {
    throw Error(ErrorCode::kUnsupported,
                fmt::format("copy engines move the rows of dispatcher '{}' only, not of '{}'; use another mover",
                            DirectDispatcher::kName, name));
  }
  if (config.layout == OutputLayout::kTokenMajor && config.sizing == Sizing::kExact) return;
  throw Error(
      ErrorCode::kUnsupported,
      fmt::format("copy engines move rows of layout token_major under exact sizing only; this is {} and {}: use "
                  "another mover",
                  to_string(config.layout), to_string(config.sizing)));
}

}  // namespace

CudaSupport cuda_support() {
  ask_for_queues();
  CudaSupport support{.compiled = true, .num_devices = 0, .reason = {}};
  const cudaError_t error = cudaGetDeviceCount(&support.num_devices);
  if (error != cudaSuccess) {
    support.num_devices = 0;
    support.reason = fmt::format("CUDA finds no GPU: {} ({})", cudaGetErrorString(error), cudaGetErrorName(error));
    static_cast<void>(cudaGetLastError());
  } else if (support.num_devices == 0) {
    support.reason = "CUDA finds no GPU";
  }
  return support;
}

const std::vector<DispatcherInfo>& cuda_dispatcher_registry() noexcept {
  static const std::vector<DispatcherInfo> infos = [] {
    std::vector<DispatcherInfo> result;
    for (const Entry& entry : entries()) result.push_back(entry.info);
    return result;
  }();
  return infos;
}

std::unique_ptr<CudaDispatcher> make_cuda_dispatcher(std::string_view name, Group& group,
                                                     const DispatcherConfig& config, const CudaOptions& options) {
  DispatcherConfig resolved = config;
  const Entry* found = nullptr;
  int device = 0;
  const Complaint complaint = attempt([&] {
    std::string known;
    for (const Entry& entry : entries()) {
      if (entry.info.name == name) found = &entry;
      known += fmt::format(" {}", entry.info.name);
    }
    if (found == nullptr) {
      throw Error(ErrorCode::kNotFound, fmt::format("there is no CUDA dispatcher '{}'; known:{}", name, known));
    }
    check_mover(name, config, options);
    const CudaSupport support = cuda_support();
    if (support.num_devices == 0) throw Error(ErrorCode::kUnsupported, support.reason);
    device = choose_device(options, group, support.num_devices);
    if (group.size() > cuda::kMaxRanks) {
      throw Error(ErrorCode::kUnsupported,
                  fmt::format("{} ranks; the CUDA device takes up to {}", group.size(), cuda::kMaxRanks));
    }
    resolved = resolve_config(config, group.size());
    static_cast<void>(cuda::choose_tile_for(resolved, group.size(), device));
  });
  // A rank with a bad configuration tells the others before it throws: nobody waits for it.
  GroupImpl& impl = group.impl();
  agree_on_config(impl, resolved, name, complaint);
  std::unique_ptr<CudaDispatcher> dispatcher;
  impl.take_together({.kind = CallKind::kCreateDispatcher}, Phase::kCreate,
                     [&] { dispatcher = found->create(group, resolved, options, device); });
  return dispatcher;
}

}  // namespace epistle
