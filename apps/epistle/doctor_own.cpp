#include "doctor_own.hpp"

#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include "epistle/dispatcher_info.hpp"
#include "epistle/error.hpp"

#include "bounded_run.hpp"
#include "exit_codes.hpp"
#include "json_text.hpp"
#include "topology/memory.hpp"

namespace epistle::cli {
namespace {

std::string_view device_name(Device device) { return device == Device::kHost ? "host" : "cuda"; }

/// "epistle: error: ..." without its beginning.
std::string complaint(const BoundedRun& run) {
  constexpr std::string_view kStart = "epistle: error: ";
  const std::size_t at = run.err.find(kStart);
  std::string text = at == std::string::npos ? run.err : run.err.substr(at + kStart.size());
  text = text.substr(0, text.find('\n'));
  return text.empty() ? run.describe() : text;
}

bool is_verified(const std::string& text) {
  const Json record = Json::parse(text, nullptr, false);
  const auto verified = record.is_object() ? record.find("verified") : record.end();
  return record.is_object() && verified != record.end() && verified->is_boolean() && verified->get<bool>();
}

/// Why it cannot be tried on this machine; empty where it can.
std::string cannot_try(const DispatcherInfo& info, const NvmlProbe& gpus) {
  if (info.device() == Device::kHost) return {};
  if (gpus.gpus.empty()) return gpus.missing.empty() ? "there is no GPU" : gpus.missing;
  if (info.capabilities().one_rank_per_gpu && gpus.gpus.size() < 2) return "it needs a GPU for each of two ranks";
  return {};
}

void run_iterations(BackendProof& proof, std::chrono::milliseconds limit) {
  const BoundedRun run = run_bounded(
      {"/proc/self/exe", "bench", "--device", proof.device, "--dispatcher", proof.name, "--group", "threads",
       "--ranks",        "2",     "--hidden", "256",        "--experts",    "8",        "--top-k", "2",
       "--tokens",       "64",    "--iters",  "3",          "--quiet",      "--json",   "-"},
      limit);
  if (run.succeeded() && is_verified(run.out)) {
    proof.initialised = true;
    proof.steady = true;
    return;
  }
  // It ends with kExitFailed where its iterations ran and bits differ.
  proof.initialised = !run.timed_out && run.signal == 0 && run.exit_code == kExitFailed;
  if (*proof.initialised) proof.steady = false;
  proof.reason = run.timed_out || run.signal != 0 ? fmt::format("the run {}", run.describe()) : complaint(run);
  proof.fix = fmt::format("see: epistle bench --device {} --dispatcher {} --ranks 2", proof.device, proof.name);
}

/// Whether this build has it.
BackendProof listed(const DispatcherInfo& info) {
  BackendProof proof;
  proof.name = info.name();
  proof.device = device_name(info.device());
  proof.selected = true;
  const std::string_view lacking = info.capabilities().missing;
  proof.imported = lacking.empty();
  if (!lacking.empty()) {
    proof.reason = lacking;
    proof.fix = "use a build that has it";
  }
  return proof;
}

BackendProof probe(const DispatcherInfo& info, const NvmlProbe& gpus, std::chrono::milliseconds limit) {
  BackendProof proof = listed(info);
  if (!*proof.imported) return proof;
  const std::string impossible = cannot_try(info, gpus);
  if (!impossible.empty()) {
    proof.reason = fmt::format("not tried: {}", impossible);
    proof.fix = "run this on the machine that will use it";
    return proof;
  }
  run_iterations(proof, limit);
  return proof;
}

/// Of the GPU with the least; -1 where none is there.
std::int64_t least_free_bytes(const NvmlProbe& gpus) {
  if (gpus.gpus.empty()) return -1;
  std::int64_t least = std::numeric_limits<std::int64_t>::max();
  for (const GpuProbe& gpu : gpus.gpus) least = std::min(least, gpu.free_memory_bytes);
  return least;
}

}  // namespace

std::vector<BackendProof> probe_own(const NvmlProbe& gpus, std::chrono::milliseconds limit) {
  std::vector<BackendProof> proofs;
  for (const DispatcherInfo* const info : dispatchers()) proofs.push_back(probe(*info, gpus, limit));
  return proofs;
}

std::vector<BackendProof> list_own(std::string_view reason) {
  std::vector<BackendProof> proofs;
  for (const DispatcherInfo* const info : dispatchers()) {
    BackendProof proof = listed(*info);
    if (proof.reason.empty()) {
      proof.reason = fmt::format("not tried: {}", reason);
      proof.fix = "leave that out";
    }
    proofs.push_back(std::move(proof));
  }
  return proofs;
}

std::vector<MemoryNeed> plan_memory(const MemoryQuestion& question, const NvmlProbe& gpus) {
  std::vector<MemoryNeed> needs;
  for (const DispatcherInfo* const info : dispatchers()) {
    MemoryNeed need{.dispatcher = std::string(info->name()), .device = std::string(device_name(info->device()))};
    try {
      const MemoryPlan plan = info->memory(question.config, question.num_ranks);
      for (const MemoryKind kind : {MemoryKind::kShared, MemoryKind::kPrivate}) {
        need.initial_bytes += plan.initial_bytes(kind);
        need.largest_bytes += plan.largest_bytes(kind);
      }
      const bool host = info->device() == Device::kHost;
      // On a host all ranks share the memory; a GPU is one rank's.
      const std::int64_t room = host ? available_memory().bytes : least_free_bytes(gpus);
      if (room >= 0) need.fits = (host ? need.largest_bytes * question.num_ranks : need.largest_bytes) <= room;
    } catch (const Error& error) {
      need.refused = error.what();
    }
    needs.push_back(std::move(need));
  }
  return needs;
}

}  // namespace epistle::cli
