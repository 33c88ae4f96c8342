#include "epistle/models.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/ascii.hpp"
#include "core/edit_distance.hpp"

namespace epistle {
namespace {

constexpr std::string_view kAiConfigurator = "Hugging Face config, as copied in NVIDIA aiconfigurator";
constexpr std::string_view kModelZoo = "Megatron-MoE-ModelZoo YAML";
constexpr std::string_view kMegatronBridge = "Megatron-Bridge documentation and tests";
constexpr std::string_view kTransformers = "Hugging Face transformers defaults";
constexpr std::string_view kWebPage = "publisher's web page";
constexpr std::string_view kFixture = "test fixture of a public repository";

// clang-format off
// name, aliases, title,
//     hidden, num_experts, top_k, expert_ffn, num_layers, num_dense_first, num_groups, groups_per_token, shared, source
constexpr std::array kPresets = {
    ModelPreset{"deepseek-v3", "deepseek-r1,deepseek-v3.2", "DeepSeek-V3/R1/V3.2",
        7168, 256, 8, 2048, 61, 3, 8, 4, "1", kAiConfigurator},
    ModelPreset{"deepseek-v4-flash", "", "DeepSeek-V4-Flash",
        4096, 256, 6, 2048, 43, 0, 1, 1, "1", kAiConfigurator},
    ModelPreset{"deepseek-v4-pro", "", "DeepSeek-V4-Pro",
        7168, 384, 6, 3072, 61, 0, 1, 1, "1", kAiConfigurator},
    ModelPreset{"deepseek-v2", "", "DeepSeek-V2",
        5120, 160, 6, 1536, 60, 1, 8, 3, "3072 wide", kModelZoo},
    ModelPreset{"deepseek-v2-lite", "", "DeepSeek-V2-Lite",
        2048, 64, 6, 1408, 27, 1, 1, 1, "2816 wide", kModelZoo},
    ModelPreset{"qwen3-235b-a22b", "qwen3-235b", "Qwen3-235B-A22B",
        4096, 128, 8, 1536, 94, 0, 1, 1, "0", kAiConfigurator},
    ModelPreset{"qwen3-30b-a3b", "qwen3-30b", "Qwen3-30B-A3B",
        2048, 128, 8, 768, 48, 0, 1, 1, "0", kAiConfigurator},
    ModelPreset{"qwen3-coder-480b", "qwen3-coder-480b-a35b", "Qwen3-Coder-480B",
        6144, 160, 8, 2560, 62, 0, 1, 1, "0", kAiConfigurator},
    ModelPreset{"qwen3-next-80b-a3b", "qwen3-next,qwen3-next-80b", "Qwen3-Next-80B-A3B",
        2048, 512, 10, 512, 48, 0, 1, 1, "512 wide", kModelZoo},
    ModelPreset{"qwen3.5-397b", "", "Qwen3.5-397B",
        4096, 512, 10, 1024, 60, 0, 1, 1, "1024 wide", kAiConfigurator},
    ModelPreset{"qwen3.5-122b", "", "Qwen3.5-122B",
        3072, 256, 8, 1024, 48, 0, 1, 1, "1024 wide", kAiConfigurator},
    ModelPreset{"qwen3.5-35b", "", "Qwen3.5-35B",
        2048, 256, 8, 512, 40, 0, 1, 1, "512 wide", kAiConfigurator},
    ModelPreset{"kimi-k2", "", "Kimi-K2",
        7168, 384, 8, 2048, 61, 1, 1, 1, "1", kAiConfigurator},
    // Its experts see a latent of 3584; the model itself is 7168 wide.
    ModelPreset{"kimi-k3", "", "Kimi-K3",
        3584, 896, 16, 3072, 93, 1, 1, 1, "2", kAiConfigurator},
    ModelPreset{"glm-4.5", "", "GLM-4.5",
        5120, 160, 8, 1536, 92, 3, 1, 1, "1", kMegatronBridge},
    ModelPreset{"glm-4.5-air", "", "GLM-4.5-Air",
        4096, 128, 8, 1408, 46, 1, 1, 1, "1", kMegatronBridge},
    ModelPreset{"glm-5", "", "GLM-5",
        6144, 256, 8, 2048, 78, 3, 1, 1, "1", kAiConfigurator},
    ModelPreset{"gpt-oss-120b", "", "gpt-oss-120b",
        2880, 128, 4, 2880, 36, 0, 1, 1, "0", kAiConfigurator},
    ModelPreset{"gpt-oss-20b", "", "gpt-oss-20b",
        2880, 32, 4, 2880, 24, 0, 1, 1, "0", kAiConfigurator},
    ModelPreset{"mixtral-8x7b", "", "Mixtral 8x7B",
        4096, 8, 2, 14336, 32, 0, 1, 1, "0", kAiConfigurator},
    ModelPreset{"mixtral-8x22b", "", "Mixtral 8x22B",
        6144, 8, 2, 16384, 56, 0, 1, 1, "0", kAiConfigurator},
    // Only every second layer of Maverick has experts; every layer of Scout has.
    ModelPreset{"llama-4-maverick", "llama4-maverick", "Llama-4 Maverick",
        5120, 128, 1, 8192, 48, 0, 1, 1, "1 (not in the config)", kAiConfigurator},
    ModelPreset{"llama-4-scout", "llama4-scout", "Llama-4 Scout",
        5120, 16, 1, 8192, 48, 0, 1, 1, "1 (not in the config)", kAiConfigurator},
    ModelPreset{"minimax-m2.5", "", "MiniMax-M2.5",
        3072, 256, 8, 1536, 62, 0, 1, 1, "-", kAiConfigurator},
    // Hybrids: only a part of their layers has experts, and Super routes a latent of 1024 (the model is 4096 wide).
    ModelPreset{"nemotron-3-nano", "", "Nemotron-3 Nano",
        2688, 128, 6, 1856, 52, 0, 1, 1, "3712 wide", kAiConfigurator},
    ModelPreset{"nemotron-3-super", "", "Nemotron-3 Super",
        1024, 512, 22, 2688, 88, 0, 1, 1, "5376 wide", kAiConfigurator},
    ModelPreset{"gemma-4-26b-a4b", "gemma-4-26b", "Gemma-4-26B-A4B",
        2816, 128, 8, 704, 30, 0, 1, 1, "-", kAiConfigurator},
    ModelPreset{"ernie-4.5-21b", "ernie-4.5-21b-a3b", "ERNIE-4.5-21B",
        2560, 64, 6, 1536, 28, 1, 1, 1, "2", kTransformers},
    ModelPreset{"ernie-4.5-300b", "ernie-4.5-300b-a47b", "ERNIE-4.5-300B",
        8192, 64, 8, 3584, 54, 3, 1, 1, "0", kFixture},
    ModelPreset{"hunyuan-a13b", "", "Hunyuan-A13B",
        4096, 64, 8, 3072, 32, 0, 1, 1, "1", kWebPage},
};
// clang-format on

constexpr std::size_t kNumSuggestions = 3;

std::vector<std::string_view> names_of(const ModelPreset& preset) {
  std::vector<std::string_view> names = {preset.name};
  std::string_view rest = preset.aliases;
  while (!rest.empty()) {
    const std::size_t comma = std::min(rest.find(','), rest.size());
    names.push_back(rest.substr(0, comma));
    rest.remove_prefix(std::min(comma + 1, rest.size()));
  }
  return names;
}

/// How far `name` is from the preset: names that begin with it come first, as it may be a family's name.
std::size_t distance_to(const ModelPreset& preset, std::string_view name) {
  constexpr std::size_t kOtherFamily = 1000;  // more than the length of any name here
  std::size_t nearest = 2 * kOtherFamily + name.size();
  for (const std::string_view candidate : names_of(preset)) {
    const std::size_t family = candidate.starts_with(name) ? 0 : kOtherFamily;
    nearest = std::min(nearest, family + edit_distance(name, candidate));
  }
  return nearest;
}

std::string closest_names(std::string_view name) {
  std::vector<std::pair<std::size_t, std::string_view>> ranked;
  ranked.reserve(kPresets.size());
  for (const ModelPreset& preset : kPresets) ranked.emplace_back(distance_to(preset, name), preset.name);
  std::stable_sort(ranked.begin(), ranked.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::string text;
  for (std::size_t idx = 0; idx < std::min(kNumSuggestions, ranked.size()); ++idx) {
    if (!text.empty()) text += ", ";
    text += ranked[idx].second;
  }
  return text;
}

}  // namespace

std::span<const ModelPreset> model_presets() noexcept { return kPresets; }

const ModelPreset& find_model(std::string_view name) {
  const std::string wanted = to_lower(name);
  for (const ModelPreset& preset : kPresets) {
    const std::vector<std::string_view> names = names_of(preset);
    if (std::find(names.begin(), names.end(), wanted) != names.end()) return preset;
  }
  throw Error(ErrorCode::kNotFound,
              fmt::format("model '{}' is not known; the closest names are {}", name, closest_names(wanted)));
}

}  // namespace epistle
