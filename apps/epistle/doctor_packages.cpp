#include "doctor_packages.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "epistle/routing.hpp"

#include "bounded_run.hpp"
#include "core/reject.hpp"
#include "json_text.hpp"
#include "output.hpp"
#include "package_probe.hpp"
#include "select/backends.hpp"

namespace epistle::cli {
namespace {

// Enough to send rows both ways, little enough for any machine; limits of packages are met: NCCL EP has a list of
// hidden sizes, low-latency kernels take up to 128 tokens, HybridEP has experts in fours.
constexpr std::int64_t kProbeHidden = 2048;
constexpr std::int32_t kProbeExperts = 8;
constexpr std::int32_t kProbeTopK = 2;
constexpr std::int64_t kProbeTokens = 64;
constexpr int kProbeRanks = 2;
constexpr int kProbeIterations = 5;

/// Packages that doctor shows, in order.
constexpr std::array<std::string_view, 8> kShown = {"deepep",     "deepep-v2", "hybridep", "ncclep",
                                                    "flashinfer", "mori",      "nixl",     "uccl"};

constexpr std::string_view kVersions = R"(
import json, platform
answer = {"python": platform.python_version(), "torch": "", "cuda": "", "nccl": ""}
try:
    import torch
    answer["torch"] = str(torch.__version__)
    answer["cuda"] = str(torch.version.cuda or "")
    answer["nccl"] = ".".join(str(part) for part in torch.cuda.nccl.version())
except Exception:
    pass
print("\n" + json.dumps(answer))
)";

/// What to do about the first level that was not shown.
std::string fix_of(std::string_view backend, const ProbeResult& result) {
  if (!result.imported.value_or(false)) return std::string(find_backend(backend).fix);
  if (!result.initialised) return "run this where there are two GPUs, with the interpreter of the container";
  if (!*result.initialised) {
    return "mend what it says; else compare driver, CUDA and NCCL with what it was built for, and see that GPUs reach "
           "each other (nvidia-smi topo -p2p r)";
  }
  return "do not use it here; rebuild it for this GPU, or tell its maintainers";
}

BackendProof probe_package(std::string_view backend, const std::string& python, const std::vector<RoutingTable>& tables,
                           std::chrono::milliseconds limit) {
  BackendProof proof;
  proof.name = backend;
  proof.device = "cuda";
  proof.selected = true;
  if (python.empty()) {
    proof.reason = "not tried: no --python";
    proof.fix = "give the interpreter of the container with --python PATH";
    return proof;
  }
  const ProbeResult result = run_probe({.package = std::string(backend),
                                        .python = python,
                                        .hidden = kProbeHidden,
                                        .tables = tables,
                                        .warmups = kProbeIterations - 1,
                                        .limit = limit});
  proof.version = result.version;
  proof.imported = result.imported;
  proof.initialised = result.initialised;
  proof.steady = result.steady;
  proof.reason = result.reason;
  proof.fix = fix_of(backend, result);
  return proof;
}

std::vector<RoutingTable> probe_tables() {
  std::vector<RoutingTable> tables;
  for (int rank = 0; rank < kProbeRanks; ++rank) {
    tables.push_back(generate_routing({.kind = RoutingKind::kUniform}, {.num_tokens = kProbeTokens,
                                                                        .num_experts = kProbeExperts,
                                                                        .top_k = kProbeTopK,
                                                                        .rank = rank,
                                                                        .num_ranks = kProbeRanks}));
  }
  return tables;
}

}  // namespace

PythonVersions probe_python(const std::string& python, std::chrono::milliseconds limit) {
  PythonVersions versions;
  if (python.empty()) return versions;
  const BoundedRun run = run_bounded({python, "-c", std::string(kVersions)}, limit);
  const Json answer = object_in_last_line(run.out);
  if (!run.succeeded() || answer.is_null()) {
    versions.missing = fmt::format("{} {}", python, run.describe());
    return versions;
  }
  versions.python = text_at(answer, "python");
  versions.torch = text_at(answer, "torch");
  versions.torch_cuda = text_at(answer, "cuda");
  versions.torch_nccl = text_at(answer, "nccl");
  return versions;
}

std::vector<BackendProof> probe_packages(const std::vector<std::string>& wanted, const std::string& python,
                                         std::chrono::milliseconds limit) {
  for (const std::string& name : wanted) {
    if (std::find(kShown.begin(), kShown.end(), name) != kShown.end()) continue;
    reject(fmt::format("--packages names '{}'; there are {}", shortened(name), fmt::join(kShown, ", ")));
  }
  const std::vector<RoutingTable> tables = probe_tables();
  std::vector<BackendProof> proofs;
  for (const std::string_view backend : kShown) {
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), backend) == wanted.end()) continue;
    proofs.push_back(probe_package(backend, python, tables, limit));
  }
  return proofs;
}

}  // namespace epistle::cli
