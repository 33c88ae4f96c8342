// What can be asked before anything is allocated, without a GPU and without other ranks: which dispatchers there are,
// which of them can serve a model on 16 ranks, what the others lack, and how much memory each rank will need.

#include <cstdint>
#include <cstdio>
#include <string>

#include "epistle/dispatcher_info.hpp"
#include "epistle/error.hpp"
#include "epistle/models.hpp"

namespace {

constexpr int kRanks = 16;
constexpr std::int64_t kTokens = 4096;
constexpr double kMebibyte = 1 << 20;

double mebibytes(std::int64_t num_bytes) { return static_cast<double>(num_bytes) / kMebibyte; }

const char* kind_text(epistle::MemoryKind kind) {
  if (kind == epistle::MemoryKind::kShared) return "shared";
  return kind == epistle::MemoryKind::kPrivate ? "private" : "pinned";
}

// Every section that takes any memory. Returns false where the sums are not those of the sections.
bool print_plan(const epistle::MemoryPlan& plan) {
  std::int64_t largest_shared_bytes = 0;
  for (const epistle::MemorySection& section : plan.sections) {
    if (section.kind == epistle::MemoryKind::kShared) largest_shared_bytes += section.largest_bytes;
    if (section.largest_bytes == 0) continue;
    std::printf("    %-20s %-8s %10.1f MiB, at first %.1f MiB\n", std::string(section.name).c_str(),
                kind_text(section.kind), mebibytes(section.largest_bytes), mebibytes(section.initial_bytes));
  }
  return largest_shared_bytes == plan.largest_bytes(epistle::MemoryKind::kShared);
}

}  // namespace

int main() {
  try {
    const epistle::ModelPreset& model = epistle::find_model("qwen3-30b-a3b");
    const epistle::DispatcherConfig config{.hidden = model.hidden,
                                           .num_experts = model.num_experts,
                                           .top_k = model.top_k,
                                           .max_tokens = kTokens,
                                           .layout = epistle::ExpertMajor{.alignment = 128},
                                           .sizing = epistle::Capacity{.rows_per_rank = 3 * kTokens * model.top_k / 2}};
    bool host_can_serve = false;
    for (const epistle::DispatcherInfo* info : epistle::dispatchers()) {
      std::printf("%s on %s: %s\n", std::string(info->name()).c_str(),
                  std::string(epistle::to_string(info->device())).c_str(), std::string(info->summary()).c_str());
      if (const auto reason = info->cannot_serve(config, kRanks)) {
        std::printf("    cannot serve this: %s\n", reason->c_str());
        continue;
      }
      if (!print_plan(info->memory(config, kRanks))) return 1;
      host_can_serve = host_can_serve || info->device() == epistle::Device::kHost;
    }
    return host_can_serve ? 0 : 1;
  } catch (const epistle::Error& error) {
    std::fprintf(stderr, "before_allocating: %s\n", error.what());
    return 1;
  }
}
