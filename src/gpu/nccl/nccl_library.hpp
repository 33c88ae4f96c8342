// NCCL, loaded when a dispatcher first needs it: the library is not linked, so nothing else depends on its version.
#pragma once

#include <string>

#include <nccl.h>

namespace epistle::nccl {

/// Non-blocking communicators can be relied on from here on.
inline constexpr int kOldestVersion = NCCL_VERSION(2, 18, 0);

/// The functions that are used.
struct NcclApi {
  decltype(&::ncclGetVersion) get_version = nullptr;
  decltype(&::ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&::ncclCommInitRankConfig) comm_init_rank_config = nullptr;
  decltype(&::ncclCommFinalize) comm_finalize = nullptr;
  decltype(&::ncclCommDestroy) comm_destroy = nullptr;
  decltype(&::ncclCommAbort) comm_abort = nullptr;
  decltype(&::ncclCommGetAsyncError) comm_get_async_error = nullptr;
  decltype(&::ncclGroupStart) group_start = nullptr;
  decltype(&::ncclGroupEnd) group_end = nullptr;
  decltype(&::ncclSend) send = nullptr;
  decltype(&::ncclRecv) receive = nullptr;
  decltype(&::ncclGetErrorString) error_string = nullptr;
  decltype(&::ncclGetLastError) last_error = nullptr;
};

/// Loads the library at `path`, which may be a name that the dynamic loader finds; once per process and path, and for
/// as long as the process lives. Switches NVLink multicast off (NCCL_NVLS_ENABLE=0) where the environment says nothing.
/// Throws kUnsupported where there is no such library, or it is too old.
[[nodiscard]] const NcclApi& load_nccl(const std::string& path);

/// "2.28.9" of NCCL's version code.
[[nodiscard]] std::string version_text(int version);

}  // namespace epistle::nccl
