#include "gpu/nccl/nccl_library.hpp"

#include <cstdlib>
#include <map>
#include <mutex>

#include <dlfcn.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

namespace epistle::nccl {
namespace {

constexpr const char* kAdvice =
    "install NCCL 2.18 or later (the package libnccl2, or the Python package nvidia-nccl-cu13), set "
    "EPISTLE_NCCL_LIBRARY to its path, or use the dispatcher direct, which needs no NCCL";

// NCCL packs versions since 2.9 as major * 10000 + minor * 100 + patch, before as major * 1000 + ...
constexpr int kNewCodes = 10000;

class Library {
 public:
  explicit Library(const std::string& path) : path_(path) {
    // NVLink multicast must stay off; NCCL reads the variable when the first communicator is made.
    ::setenv("NCCL_NVLS_ENABLE", "0", 0);
    handle_ = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle_ != nullptr) return;
    const char* const reason = ::dlerror();
    throw Error(ErrorCode::kUnsupported, fmt::format("the dispatcher alltoall needs NCCL, but '{}' cannot be loaded "
                                                     "({}); {}",
                                                     path, reason != nullptr ? reason : "no reason given", kAdvice));
  }

  template <typename Function>
  void find(Function& function, const char* name) const {
    function = reinterpret_cast<Function>(::dlsym(handle_, name));
    if (function != nullptr) return;
    throw Error(ErrorCode::kUnsupported,
                fmt::format("'{}' has no function {}, so it is no NCCL, or too old; {}", path_, name, kAdvice));
  }

 private:
  std::string path_;
  void* handle_ = nullptr;  // never closed: NCCL has threads of its own
};

NcclApi load(const std::string& path) {
  const Library library(path);
  NcclApi api;
  library.find(api.get_version, "ncclGetVersion");
  int version = 0;
  if (api.get_version(&version) != ncclSuccess || version < kOldestVersion) {
    throw Error(ErrorCode::kUnsupported, fmt::format("'{}' is NCCL {}, but at least {} is needed; {}", path,
                                                     version_text(version), version_text(kOldestVersion), kAdvice));
  }
  library.find(api.get_unique_id, "ncclGetUniqueId");
  library.find(api.comm_init_rank_config, "ncclCommInitRankConfig");
  library.find(api.comm_finalize, "ncclCommFinalize");
  library.find(api.comm_destroy, "ncclCommDestroy");
  library.find(api.comm_abort, "ncclCommAbort");
  library.find(api.comm_get_async_error, "ncclCommGetAsyncError");
  library.find(api.group_start, "ncclGroupStart");
  library.find(api.group_end, "ncclGroupEnd");
  library.find(api.send, "ncclSend");
  library.find(api.receive, "ncclRecv");
  library.find(api.error_string, "ncclGetErrorString");
  library.find(api.last_error, "ncclGetLastError");
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
