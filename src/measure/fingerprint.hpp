// What a measurement was made with: enough to tell whether two results can be compared.
#pragma once

#include <string>

namespace epistle {

struct Fingerprint {
  std::string epistle_version;
  std::string compiler;
  std::string build_type;
  std::string simd_target;
  std::string fmt_version;
  std::string highway_version;
  std::string hwloc_version;
  std::string date_utc;  ///< ISO 8601
};

[[nodiscard]] Fingerprint make_fingerprint();

}  // namespace epistle
