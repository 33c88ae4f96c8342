#include "topology/nccl_version.hpp"

#include <dlfcn.h>

#include <fmt/format.h>

namespace epistle {

std::string probe_nccl_version(const std::string& library) {
  void* const handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return {};
  std::string text;
  if (auto* const get_version = reinterpret_cast<int (*)(int*)>(dlsym(handle, "ncclGetVersion"));
      get_version != nullptr) {
    int version = 0;
    // 22803 is 2.28.3; before 2.9 it was 2804 for 2.8.4.
    constexpr int kFirstFiveDigits = 10'000;
    const int scale = get_version(&version) == 0 && version >= kFirstFiveDigits ? 10'000 : 1000;
    if (version > 0) text = fmt::format("{}.{}.{}", version / scale, version % scale / 100, version % 100);
  }
  dlclose(handle);
  return text;
}

}  // namespace epistle
