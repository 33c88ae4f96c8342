// Which NCCL a program of this machine would load.
#pragma once

#include <string>

namespace epistle {

/// "2.28.3"; empty where the library cannot be loaded or does not tell.
[[nodiscard]] std::string probe_nccl_version(const std::string& name = "libnccl.so.2");

}  // namespace epistle
