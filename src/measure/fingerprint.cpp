#include "measure/fingerprint.hpp"

#include <ctime>

#include <hwloc.h>

#include <fmt/format.h>
#include <hwy/highway.h>

#include "epistle/version.hpp"

#include "dispatch/host/engine/row_kernels.hpp"

namespace epistle {
namespace {

std::string compiler_name() {
#if defined(__clang__)
  return fmt::format("clang {}", __clang_version__);
#else
  return fmt::format("gcc {}", __VERSION__);
#endif
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  constexpr std::size_t kMaxLength = sizeof("2000-01-01T00:00:00Z");
  char text[kMaxLength] = {};
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

}  // namespace

Fingerprint make_fingerprint() {
  constexpr unsigned kMajorShift = 16;
  constexpr unsigned kMinorShift = 8;
  constexpr unsigned kByteMask = 0xff;
  const unsigned hwloc = hwloc_get_api_version();
  return {.epistle_version = EPISTLE_VERSION_STRING,
          .compiler = compiler_name(),
          .build_type = EPISTLE_BUILD_TYPE,
          .simd_target = host::simd_target_name(),
          .fmt_version = fmt::format("{}.{}.{}", FMT_VERSION / 10000, FMT_VERSION / 100 % 100, FMT_VERSION % 100),
          .highway_version = fmt::format("{}.{}.{}", HWY_MAJOR, HWY_MINOR, HWY_PATCH),
          .hwloc_version =
              fmt::format("{}.{}.{}", hwloc >> kMajorShift, (hwloc >> kMinorShift) & kByteMask, hwloc & kByteMask),
          .date_utc = utc_now()};
}

}  // namespace epistle
