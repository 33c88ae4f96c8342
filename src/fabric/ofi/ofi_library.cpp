#include "fabric/ofi/ofi_library.hpp"

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/loaded_library.hpp"
#include "core/settings.hpp"
#include "fabric/fabric.hpp"

namespace epistle::ofi {
namespace {

constexpr const char* kFabricAdvice =
    "install libfabric 1.14 or later (the package libfabric1), or set EPISTLE_FABRIC_LIBRARY to its path";

OfiApi load() {
  LoadedLibrary library(settings().fabric_library());
  library.require_loaded("rows travel between hosts by libfabric", kFabricAdvice);
  const auto find = [&library](auto& function, const char* name) { library.require(function, name, kFabricAdvice); };
  OfiApi api;
  find(api.get_info, "fi_getinfo");
  find(api.free_info, "fi_freeinfo");
  find(api.duplicate_info, "fi_dupinfo");
  find(api.open_fabric, "fi_fabric");
  find(api.error_text, "fi_strerror");
  find(api.version, "fi_version");
  library.stay();  // providers have threads of their own
  return api;
}

}  // namespace

const OfiApi& load_ofi() {
  static const OfiApi api = load();
  return api;
}

InfoList own_info(fi_info* info) { return {info, load_ofi().free_info}; }

void require(long status, const char* what) {
  if (status >= 0) return;
  throw Error(ErrorCode::kSystem, fmt::format("{} failed: {} (libfabric; FI_LOG_LEVEL=warn says more)", what,
                                              load_ofi().error_text(static_cast<int>(-status))));
}

}  // namespace epistle::ofi

namespace epistle {

std::string describe_fabric_library() {
  try {
    const std::uint32_t version = ofi::load_ofi().version();
    return fmt::format("libfabric {}.{}", FI_MAJOR(version), FI_MINOR(version));
  } catch (const Error& error) {
    return std::string(error.message());
  }
}

}  // namespace epistle
