// What a build may lack: why, and what to do about it; empty where it is there.
#pragma once

#include <string_view>

namespace epistle {

inline constexpr std::string_view kLackOfCuda =
    EPISTLE_HAS_CUDA ? "" : "this build has no CUDA device; configure with -DEPISTLE_CUDA=ON and a CUDA compiler";
inline constexpr std::string_view kLackOfNccl =
    EPISTLE_HAS_NCCL
        ? ""
        : "this build has no NCCL; configure with -DEPISTLE_CUDA=ON where a CUDA compiler and nccl.h are found";

}  // namespace epistle
