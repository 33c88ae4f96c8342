#include "select/engine_backends.hpp"

#include <algorithm>
#include <array>

namespace epistle {
namespace {

constexpr std::string_view kGuides =
    "vLLM, expert parallel deployment guides of 0.10 to 0.20 and vllm/config/parallel.py";
constexpr std::string_view kServerArgs = "SGLang, srt/server_args.py of several releases";

// clang-format off
constexpr std::array kVllmBackends = {
    EngineBackend{.name = "allgather_reducescatter", .since = {0, 11}, .source = kGuides, .date = "2025-10"},
    EngineBackend{.name = "naive", .since = {0, 8}, .until = Version{0, 16}, .now = "allgather_reducescatter", .is_alias = true, .source = "vLLM PR 33728", .date = "2026-02"},
    EngineBackend{.name = "pplx", .since = {0, 9}, .until = Version{0, 16}, .now = "allgather_reducescatter", .is_alias = true, .source = "vLLM PR 33724", .date = "2026-02"},
    EngineBackend{.name = "deepep_high_throughput", .since = {0, 9}, .source = kGuides, .date = "2025-06"},
    EngineBackend{.name = "deepep_low_latency", .since = {0, 9}, .source = kGuides, .date = "2025-06"},
    EngineBackend{.name = "deepep_v2", .since = {0, 20}, .source = kGuides, .date = "2026-06"},
    EngineBackend{.name = "mori", .since = {0, 13}, .until = Version{0, 21}, .now = "mori_high_throughput", .source = "vLLM PRs 28664 and 41751", .date = "2026-05"},
    EngineBackend{.name = "mori_high_throughput", .since = {0, 20}, .source = kGuides, .date = "2026-06"},
    EngineBackend{.name = "mori_low_latency", .since = {0, 20}, .source = kGuides, .date = "2026-06"},
    EngineBackend{.name = "nixl_ep", .since = {0, 16}, .source = kGuides, .date = "2026-03"},
    EngineBackend{.name = "moonep", .since = {0, 24}, .source = "vLLM PR 52101", .date = "2026-08-13"},
    EngineBackend{.name = "flashinfer_all2allv", .since = {0, 10}, .until = Version{0, 18}, .now = "flashinfer_nvlink_two_sided", .is_alias = true, .source = kGuides, .date = "2026-04"},
    EngineBackend{.name = "flashinfer_nvlink_two_sided", .since = {0, 18}, .source = kGuides, .date = "2026-04"},
    EngineBackend{.name = "flashinfer_nvlink_one_sided", .since = {0, 18}, .source = kGuides, .date = "2026-04"},
    // Of pull requests and plug-ins.
    EngineBackend{.name = "passthrough", .since = {0, 11}, .source = kGuides, .date = "2026-09"},
};

constexpr std::array kSglangBackends = {
    EngineBackend{.name = "none", .since = {0, 5}, .source = kServerArgs, .date = "2025-08"},
    EngineBackend{.name = "deepep", .since = {0, 5}, .source = kServerArgs, .date = "2025-08"},
    EngineBackend{.name = "mooncake", .since = {0, 5, 2}, .source = kServerArgs, .date = "2025-10"},
    EngineBackend{.name = "ascend_fuseep", .since = {0, 5, 5}, .source = kServerArgs, .date = "2025-12"},
    EngineBackend{.name = "flashinfer", .since = {0, 5, 5}, .source = kServerArgs, .date = "2026-01"},
    EngineBackend{.name = "mori", .since = {0, 5, 7}, .source = "SGLang PR 17012", .date = "2026-01"},
    EngineBackend{.name = "nixl", .since = {0, 5, 8}, .source = kServerArgs, .date = "2026-03"},
    EngineBackend{.name = "megamoe", .since = {0, 5, 10}, .source = kServerArgs, .date = "2026-05"},
    EngineBackend{.name = "deepep_v2", .since = {0, 5, 12}, .source = kServerArgs, .date = "2026-07"},
    EngineBackend{.name = "pplx", .since = {0, 5, 12}, .source = kServerArgs, .date = "2026-09"},
    EngineBackend{.name = "ascend_tp", .since = {0, 5, 12}, .source = kServerArgs, .date = "2026-09"},
    EngineBackend{.name = "flashinfer_megamoe", .since = {0, 5, 12}, .source = kServerArgs, .date = "2026-09"},
    // Of plug-ins.
    EngineBackend{.name = "customized", .since = {0, 5}, .source = kServerArgs, .date = "2026-09"},
};
// clang-format on

}  // namespace

std::span<const EngineBackend> vllm_backends() noexcept { return kVllmBackends; }
std::span<const EngineBackend> sglang_backends() noexcept { return kSglangBackends; }

const EngineBackend* find_engine_backend(std::span<const EngineBackend> backends, std::string_view name) noexcept {
  const auto found = std::find_if(backends.begin(), backends.end(),
                                  [&](const EngineBackend& backend) { return backend.name == name; });
  return found == backends.end() ? nullptr : &*found;
}

}  // namespace epistle
