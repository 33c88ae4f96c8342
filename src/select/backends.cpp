#include "select/backends.hpp"

#include <array>
#include <string>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/ascii.hpp"

namespace epistle {
namespace {

// clang-format off
constexpr std::array kBackends = {
    SelectBackend{"alltoall", "all2all,a2a", "plain all-to-all", true, "", "", ""},
    SelectBackend{"allgather", "allgather_reducescatter,agrs", "all-gather and reduce-scatter", true, "", "", ""},
    SelectBackend{"deepep", "deepep-v1,deepep_v1", "DeepEP Buffer", false, "deep_ep", "deepep",
        "build DeepEP for this CUDA and GPU, then import deep_ep.Buffer in the container that will run"},
    SelectBackend{"deepep-v2", "deepep_v2,deepepv2", "DeepEP ElasticBuffer", false, "deep_ep 2", "",
        "install DeepEP 2 with NCCL 2.30.4 or newer and PyTorch 2.10 or newer, then import deep_ep.ElasticBuffer"},
    SelectBackend{"hybridep", "hybrid-ep,hybrid_ep", "HybridEP", false, "deep_ep (branch hybrid-ep)", "hybridep",
        "build the hybrid-ep branch of DeepEP (HYBRID_EP_MULTINODE=1 for several domains), then import "
        "deep_ep.HybridEPBuffer"},
    SelectBackend{"ncclep", "nccl-ep,nccl_ep", "NCCL EP", false, "nccl-extensions or Transformer Engine", "ncclep",
        "install nccl-extensions with NCCL 2.30.4 or newer, or a Transformer Engine that has transformer_engine.pytorch.ep"},
    SelectBackend{"epistle", "", "Epistle", false, "epistle", "",
        "install Epistle with the CUDA device; `epistle doctor` proves it"},
    SelectBackend{"flashinfer", "flashinfer_nvlink_one_sided", "FlashInfer one-sided", false, "flashinfer", "",
        "install FlashInfer, then import flashinfer.comm.trtllm_moe_alltoall"},
    SelectBackend{"mori", "mori-ep,mori_ep", "MoRI-EP", false, "mori", "", "install MoRI for ROCm, then import mori.ops"},
    SelectBackend{"nixl", "nixl-ep,nixl_ep", "NIXL EP", false, "nixl_ep", "", "install NIXL with its EP part, then import nixl_ep"},
    SelectBackend{"uccl", "uccl-ep,uccl_ep", "UCCL-EP", false, "uccl", "deepep",
        "install uccl and its deep_ep wrapper, then import uccl.ep"},
};
// clang-format on

bool has_name(const SelectBackend& backend, const std::string& name) {
  const std::string list = fmt::format(",{},{},", backend.name, backend.aliases);
  return !name.empty() && name.find(',') == std::string::npos && list.find("," + name + ",") != std::string::npos;
}

}  // namespace

std::span<const SelectBackend> select_backends() noexcept { return kBackends; }

const SelectBackend& find_backend(std::string_view name) {
  const std::string wanted = to_lower(name);
  std::string names;
  for (const SelectBackend& backend : kBackends) {
    if (has_name(backend, wanted)) return backend;
    names += (names.empty() ? "" : ", ") + std::string(backend.name);
  }
  throw Error(ErrorCode::kNotFound, fmt::format("there is no backend '{}'; the backends are {}", name, names));
}

}  // namespace epistle
