#include "topology/nccl_version.hpp"

#include <fmt/format.h>

#include "core/loaded_library.hpp"

namespace epistle {

std::string probe_nccl_version(const std::string& name) {
  const LoadedLibrary library(name);
  int (*get_version)(int*) = nullptr;
  library.find(get_version, "ncclGetVersion");
  int version = 0;
  if (get_version == nullptr) return {};
  // 22803 is 2.28.3; before 2.9 it was 2804 for 2.8.4.
  constexpr int kFirstFiveDigits = 10'000;
  const int scale = get_version(&version) == 0 && version >= kFirstFiveDigits ? 10'000 : 1000;
  if (version <= 0) return {};
  return fmt::format("{}.{}.{}", version / scale, version % scale / 100, version % 100);
}

}  // namespace epistle
