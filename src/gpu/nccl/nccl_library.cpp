#include "gpu/nccl/nccl_library.hpp"

#include <cstdlib>
#include <map>
#include <mutex>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/loaded_library.hpp"

namespace epistle::nccl {
namespace {

constexpr const char* kAdvice =
    "install NCCL 2.18 or later (the package libnccl2, or the Python package nvidia-nccl-cu13), set "
    "EPISTLE_NCCL_LIBRARY to its path, or use the dispatcher direct, which needs no NCCL";

// NCCL packs versions since 2.9 as major * 10000 + minor * 100 + patch, before as major * 1000 + ...
constexpr int kNewCodes = 10000;

NcclApi load(const std::string& path) {
  // NVLink multicast must stay off; NCCL reads the variable when the first communicator is made.
  ::setenv("NCCL_NVLS_ENABLE", "0", 0);
  LoadedLibrary library(path);
  library.require_loaded("the dispatcher alltoall needs NCCL", kAdvice);
  const auto find = [&library](auto& function, const char* name) { library.require(function, name, kAdvice); };
  NcclApi api;
  find(api.get_version, "ncclGetVersion");
  int version = 0;
  if (api.get_version(&version) != ncclSuccess || version < kOldestVersion) {
    throw Error(ErrorCode::kUnsupported, fmt::format("'{}' is NCCL {}, but at least {} is needed; {}", path,
                                                     version_text(version), version_text(kOldestVersion), kAdvice));
  }
  find(api.get_unique_id, "ncclGetUniqueId");
  find(api.comm_init_rank_config, "ncclCommInitRankConfig");
  find(api.comm_finalize, "ncclCommFinalize");
  find(api.comm_destroy, "ncclCommDestroy");
  find(api.comm_abort, "ncclCommAbort");
  find(api.comm_get_async_error, "ncclCommGetAsyncError");
  find(api.group_start, "ncclGroupStart");
  find(api.group_end, "ncclGroupEnd");
  find(api.send, "ncclSend");
  find(api.receive, "ncclRecv");
  find(api.error_string, "ncclGetErrorString");
  find(api.last_error, "ncclGetLastError");
  library.stay();  // it has threads of its own
  return api;
}

}  // namespace

const NcclApi& load_nccl(const std::string& path) {
  static std::mutex mutex;
  static std::map<std::string, NcclApi> loaded;
  const std::lock_guard lock(mutex);
  const auto found = loaded.find(path);
  if (found != loaded.end()) return found->second;
  return loaded.emplace(path, load(path)).first->second;
}

std::string version_text(int version) {
  const int base = version >= kNewCodes ? kNewCodes : kNewCodes / 10;
  return fmt::format("{}.{}.{}", version / base, version % base / 100, version % 100);
}

}  // namespace epistle::nccl
