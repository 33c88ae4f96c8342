#include "select/query.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include <fmt/format.h>

#include "epistle/error.hpp"
#include "epistle/models.hpp"

#include "core/ascii.hpp"
#include "core/reject.hpp"
#include "cost/exchange_counts.hpp"

namespace epistle {
namespace {

constexpr std::int32_t kMaxEp = 4096;
/// More ranks than this reach each other by load and store only in a rack such as NVL72.
constexpr std::int32_t kLargestHostDomain = 8;

struct FamilyRow {
  std::string_view model;
  ModelFamily family;
};

constexpr std::array kFamilies = {
    FamilyRow{"deepseek-v3", ModelFamily::kDeepSeekV3},   FamilyRow{"qwen3-235b-a22b", ModelFamily::kQwen3Large},
    FamilyRow{"qwen3-30b-a3b", ModelFamily::kQwen3Small}, FamilyRow{"qwen3-next-80b-a3b", ModelFamily::kQwen3Next},
    FamilyRow{"mixtral-8x7b", ModelFamily::kMixtral},     FamilyRow{"mixtral-8x22b", ModelFamily::kMixtral},
    FamilyRow{"llama-4-maverick", ModelFamily::kVision},  FamilyRow{"llama-4-scout", ModelFamily::kVision},
};

struct VisionRow {
  std::string_view name;
  std::string_view text_model;  ///< whose shape its experts have
};

// Vision-language models whose experts are those of a text model, by their publishers' configs (2025).
constexpr std::array kVisionModels = {
    VisionRow{"qwen3-vl-30b", "qwen3-30b-a3b"},
    VisionRow{"qwen3-vl-30b-a3b", "qwen3-30b-a3b"},
    VisionRow{"qwen3-vl-235b", "qwen3-235b-a22b"},
    VisionRow{"qwen3-vl-235b-a22b", "qwen3-235b-a22b"},
    VisionRow{"qwen3-vl", "qwen3-235b-a22b"},
    VisionRow{"glm-4.5v", "glm-4.5-air"},
    VisionRow{"kimi-k2.5", "kimi-k2"},
    VisionRow{"kimi-k2.5-vl", "kimi-k2"},
};

}  // namespace

std::string_view to_string(WorkPhase phase) noexcept {
  constexpr std::array<std::string_view, 3> kNames = {"training", "prefill", "decode"};
  return kNames[static_cast<std::size_t>(phase)];
}

std::string_view to_string(Precision precision) noexcept {
  constexpr std::array<std::string_view, 4> kNames = {"bf16", "fp8", "mxfp8", "nvfp4"};
  return kNames[static_cast<std::size_t>(precision)];
}

std::string_view to_string(Fabric fabric) noexcept {
  constexpr std::array<std::string_view, 4> kNames = {"unknown", "infiniband", "roce", "efa"};
  return kNames[static_cast<std::size_t>(fabric)];
}

SelectModel find_select_model(std::string_view name) {
  const std::string wanted = to_lower(name);
  const auto* const vision = std::find_if(kVisionModels.begin(), kVisionModels.end(),
                                          [&](const VisionRow& row) { return row.name == wanted; });
  const ModelPreset& preset = find_model(vision == kVisionModels.end() ? std::string_view(wanted) : vision->text_model);
  SelectModel model{.name = std::string(vision == kVisionModels.end() ? preset.name : vision->name),
                    .hidden = preset.hidden,
                    .num_experts = preset.num_experts,
                    .top_k = preset.top_k};
  for (const FamilyRow& row : kFamilies) {
    if (row.model == preset.name) model.family = row.family;
  }
  if (vision != kVisionModels.end()) model.family = ModelFamily::kVision;
  return model;
}

GpuClass classify_gpu(const Cluster& cluster) noexcept {
  const std::string_view architecture = cluster.gpu_architecture;
  if (architecture.starts_with("gfx")) return GpuClass::kAmd;
  if (!architecture.starts_with("sm_")) return GpuClass::kUnknown;
  if (cluster.link == ScaleUpLink::kPcie) return GpuClass::kPcie;
  const std::string_view number = architecture.substr(3);
  if (number.starts_with("12")) return GpuClass::kPcie;  // no NVLink is sold with these
  if (number.starts_with("10")) {
    return cluster.gpus_per_domain() > kLargestHostDomain ? GpuClass::kBlackwellNvl72 : GpuClass::kBlackwell;
  }
  if (number.starts_with('9')) return GpuClass::kHopper;
  if (number.starts_with('8')) return GpuClass::kAmpere;
  return GpuClass::kUnknown;
}

std::int64_t ranks_per_domain(std::int64_t ep, std::int64_t gpus) noexcept {
  if (gpus < 1 || ep <= gpus) return std::max<std::int64_t>(ep, 1);
  if (gpus <= kLargestHostDomain) return gpus;
  for (std::int64_t ranks = gpus; ranks > 1; --ranks) {
    if (ep % ranks == 0) return ranks;
  }
  return 1;
}

std::int64_t low_latency_limit(std::int32_t ep) noexcept {
  // Measured on H100 with DeepEP (2026-08): 200 tokens at EP 8, 120 at EP 16, 140 at EP 32.
  if (ep <= 8) return 200;
  return ep <= 16 ? 120 : 140;
}

SelectFacts make_facts(SelectQuery query) {
  const SelectModel& model = query.model;
  if (query.ep < 1 || query.ep > kMaxEp)
    reject(fmt::format("the EP degree is {}; it must be 1 to {}", query.ep, kMaxEp));
  if (model.hidden < 1 || model.num_experts < 1 || model.top_k < 1) {
    reject(fmt::format("the shape has hidden {}, {} experts, top-k {}; all must be at least 1", model.hidden,
                       model.num_experts, model.top_k));
  }
  if (model.top_k > model.num_experts) {
    reject(fmt::format("top-k is {}, but there are only {} experts", model.top_k, model.num_experts));
  }
  if (query.ep > model.num_experts) {
    reject(fmt::format("EP {} leaves ranks without experts: {} experts; use EP {} or less", query.ep, model.num_experts,
                       model.num_experts));
  }
  SelectFacts facts;
  facts.gpu = classify_gpu(query.cluster);
  facts.nvlink = query.cluster.link == ScaleUpLink::kNvLink && facts.gpu != GpuClass::kUnknown;
  const std::int32_t domain = std::max(query.cluster.gpus_per_domain(), 1);
  facts.domain_ranks = static_cast<std::int32_t>(ranks_per_domain(query.ep, domain));
  facts.num_domains = (query.ep + facts.domain_ranks - 1) / facts.domain_ranks;
  facts.distinct_ranks = expected_distinct_groups(model.num_experts, model.top_k, query.ep);
  facts.distinct_domains = expected_distinct_groups(model.num_experts, model.top_k, facts.num_domains);
  if (query.phase != WorkPhase::kTraining) {
    facts.low_latency = query.tokens_per_rank ? *query.tokens_per_rank <= low_latency_limit(query.ep)
                                              : query.phase == WorkPhase::kDecode;
  }
  facts.query = std::move(query);
  return facts;
}

}  // namespace epistle
