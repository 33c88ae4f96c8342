// libfabric, loaded when it is first needed: the library is not linked, so a machine without it runs everything else.
#pragma once

#include <memory>
#include <string>

#include <rdma/fabric.h>

namespace epistle::ofi {

/// What is not reached through the tables of functions that objects of libfabric carry.
struct OfiApi {
  decltype(&::fi_getinfo) get_info = nullptr;
  decltype(&::fi_freeinfo) free_info = nullptr;
  decltype(&::fi_dupinfo) duplicate_info = nullptr;
  decltype(&::fi_fabric) open_fabric = nullptr;
  decltype(&::fi_strerror) error_text = nullptr;
  decltype(&::fi_version) version = nullptr;
};

/// Once per process, for as long as it lives. Throws kUnsupported.
[[nodiscard]] const OfiApi& load_ofi();

using InfoList = std::unique_ptr<fi_info, void (*)(fi_info*)>;
[[nodiscard]] InfoList own_info(fi_info* info);

/// Closes what libfabric has opened.
struct Close {
  template <typename Object>
  void operator()(Object* object) const noexcept {
    if (object != nullptr) (void)object->fid.ops->close(&object->fid);
  }
};
template <typename Object>
using Owned = std::unique_ptr<Object, Close>;

/// Throws kSystem where `status`, what a function of libfabric returned, says that it failed.
void require(long status, const char* what);

}  // namespace epistle::ofi
