// Models read from config.json files, in the many ways in which publishers write them.
#include "plan/model_config.hpp"

#include <algorithm>
#include <string>
#include <string_view>

#include <gtest/gtest.h>

#include "epistle/error.hpp"
#include "epistle/models.hpp"

#include "plan/plan.hpp"

namespace epistle::test {
namespace {

constexpr double kBillion = 1e9;

double kept_tokens(const PlanModel& model, double context_tokens) {
  double kept = 0.0;
  for (const AttentionLayers& layers : model.attention) {
    kept += layers.num_layers * layers.kept_tokens(context_tokens) / model.num_layers;
  }
  return kept;
}

TEST(ModelConfig, IsThePresetThatItIsTheConfigOf) {
  const PlanModel model = parse_plan_model(
      R"({"hidden_size": 4096, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1536,
          "intermediate_size": 12288, "num_hidden_layers": 94, "num_attention_heads": 64, "num_key_value_heads": 4,
          "head_dim": 128, "vocab_size": 151936})",
      "config.json");
  const PlanModel preset = plan_model_of_preset("qwen3-235b-a22b");
  EXPECT_EQ(model.num_moe_layers, preset.num_moe_layers);
  EXPECT_EQ(model.parameters(), preset.parameters());
  ASSERT_EQ(model.attention.size(), 1U);
  EXPECT_TRUE(model.attention[0].is_like(preset.attention[0]));
}

TEST(ModelConfig, OfEveryPresetAgreesWithItsShape) {
  for (const ModelPreset& preset : model_presets()) {
    const PlanModel model = plan_model_of_preset(preset.name);
    EXPECT_EQ(model.routed_hidden, static_cast<double>(preset.hidden)) << preset.name;
    EXPECT_EQ(model.expert_ffn, static_cast<double>(preset.expert_ffn)) << preset.name;
    EXPECT_EQ(model.num_experts, preset.num_experts) << preset.name;
    EXPECT_EQ(model.top_k, preset.top_k) << preset.name;
    EXPECT_EQ(model.num_groups, preset.num_groups) << preset.name;
    EXPECT_EQ(model.groups_per_token, preset.groups_per_token) << preset.name;
  }
}

TEST(ModelConfig, OfPresetsHasTheirPublishedParameters) {
  struct Published {
    std::string_view name;
    double billions, active_billions;
  };
  // As the publishers name them; some count embeddings among the active ones and some do not.
  constexpr Published kPublished[] = {
      {"deepseek-v3", 671, 37},       {"deepseek-v2", 236, 21},        {"qwen3-235b-a22b", 235, 22},
      {"qwen3-next-80b-a3b", 80, 4},  {"qwen3.5-397b", 397, 17},       {"kimi-k2", 1026, 32},
      {"glm-4.5", 355, 32},           {"gpt-oss-120b", 117, 5.7},      {"mixtral-8x22b", 141, 39},
      {"llama-4-maverick", 400, 17},  {"llama-4-scout", 109, 17},      {"minimax-m2.5", 229, 10},
      {"nemotron-3-nano", 31.6, 3.6}, {"nemotron-3-super", 120, 12.7}, {"hunyuan-a13b", 80, 13}};
  for (const Published& published : kPublished) {
    const PlanModel model = plan_model_of_preset(published.name);
    EXPECT_NEAR(model.parameters() / kBillion, published.billions, 0.02 * published.billions) << published.name;
    EXPECT_NEAR(model.active_parameters() / kBillion, published.active_billions, 0.12 * published.active_billions)
        << published.name;
  }
}

TEST(ModelConfig, HasListsOfSizesForLayersThatAreAlike) {
  const PlanModel model = parse_plan_model(
      R"({"model_type": "hunyuan_v1_moe", "hidden_size": 4096, "intermediate_size": 3072,
          "moe_intermediate_size": [3072, 3072], "num_experts": 64, "moe_topk": [8, 8], "num_shared_expert": [1, 1],
          "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 2, "moe_layer_num_skipped": 0})",
      "c");
  EXPECT_EQ(model.top_k, 8);
  EXPECT_EQ(model.expert_ffn, 3072);
  EXPECT_EQ(model.shared_ffn, 3072);
}

TEST(ModelConfig, HasLayersWithStatesInPlaceOfACache) {
  // Jamba: attention in one layer of eight, experts in every second.
  const PlanModel jamba = parse_plan_model(
      R"({"model_type": "jamba", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
          "num_key_value_heads": 8, "num_hidden_layers": 32, "num_experts": 16, "num_experts_per_tok": 2,
          "expert_layer_period": 2, "expert_layer_offset": 1, "attn_layer_period": 8, "attn_layer_offset": 4,
          "mamba_d_state": 16, "mamba_expand": 2, "vocab_size": 65536})",
      "c");
  EXPECT_EQ(jamba.num_moe_layers, 16);
  EXPECT_NEAR(jamba.parameters() / kBillion, 52, 1);
  EXPECT_DOUBLE_EQ(kept_tokens(jamba, 4096), 4096 / 8.0);
  EXPECT_DOUBLE_EQ(state_bytes_per_sequence(jamba), 28 * 4 * 8192 * 16.0);
  // Nemotron: blocks that are either attention or experts.
  const PlanModel hybrid = parse_plan_model(
      R"({"hidden_size": 64, "moe_intermediate_size": 32, "n_routed_experts": 8, "num_experts_per_tok": 2,
          "num_attention_heads": 2, "hybrid_override_pattern": "MEM*E-", "mamba_num_heads": 2, "mamba_head_dim": 64,
          "ssm_state_size": 16, "num_hidden_layers": 6, "mlp_hidden_act": "relu2", "moe_latent_size": 16,
          "time_step_limit": [0.0, Infinity]})",
      "c");
  EXPECT_EQ(hybrid.num_layers, 4);
  EXPECT_EQ(hybrid.num_moe_layers, 2);
  EXPECT_EQ(hybrid.expert_elements(), 2 * 16 * 32);
  EXPECT_EQ(hybrid.routed_hidden, 16);
}

TEST(ModelConfig, CountsLayersWithExpertsAndWindowsOfPublishedForms) {
  const std::string common =
      R"({"hidden_size": 2880, "num_local_experts": 32, "num_experts_per_tok": 4, "intermediate_size": 2880,
          "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_hidden_layers": 4, )";
  const auto read = [&](const std::string& rest) { return parse_plan_model(common + rest + "}", "c"); };
  const PlanModel windows = read(
      R"("sliding_window": 128, "layer_types": ["sliding_attention", "full_attention", "sliding_attention",
         "full_attention"])");
  EXPECT_EQ(windows.num_moe_layers, 4);
  EXPECT_DOUBLE_EQ(kept_tokens(windows, 4096), (4096 + 128) / 2.0);
  EXPECT_EQ(read(R"("decoder_sparse_step": 2, "mlp_only_layers": [3])").num_moe_layers, 1);
  EXPECT_EQ(read(R"("first_k_dense_replace": 3, "moe_layer_freq": 1)").num_moe_layers, 1);
  EXPECT_EQ(read(R"("moe_layer_freq": [0, 1, 1, 1])").num_moe_layers, 3);
  EXPECT_EQ(read(R"("moe_layers_enum": "1,3")").num_moe_layers, 2);
  EXPECT_EQ(read(R"("moe_layer_start_index": 1, "moe_layer_end_index": 2)").num_moe_layers, 2);
  EXPECT_EQ(read(R"("moe_layer_end_index": -1)").num_moe_layers, 4);
  EXPECT_EQ(read(R"("num_dense_layers": 2)").num_moe_layers, 2);
  EXPECT_EQ(read(R"("is_moe_layer": [false, true, true, true])").num_moe_layers, 3);
  EXPECT_EQ(read(R"("mlp_layer_types": ["dense", "sparse", "sparse", "sparse"])").num_moe_layers, 3);
  EXPECT_DOUBLE_EQ(kept_tokens(read(R"("sliding_window": 64, "use_sliding_window": false)"), 4096), 4096);
  EXPECT_DOUBLE_EQ(kept_tokens(read(R"("sliding_window": 64, "sliding_window_pattern": "LLLG")"), 4096),
                   (3 * 64 + 4096) / 4.0);
  EXPECT_DOUBLE_EQ(kept_tokens(read(R"("sliding_window": 64, "hybrid_layer_pattern": [0, 1, 1, 1])"), 4096),
                   (3 * 64 + 4096) / 4.0);
  EXPECT_DOUBLE_EQ(kept_tokens(read(R"("model_type": "llama4_text", "attention_chunk_size": 64)"), 4096),
                   (3 * 64 + 4096) / 4.0);
  EXPECT_DOUBLE_EQ(read(R"("attn_type_list": [0, 0, 0, 1])").attention[0].num_layers, 3);
  EXPECT_THROW((void)read(R"("decoder_sparse_step": 9)"), Error);
}

TEST(ModelConfig, SparseAttentionKeepsAllAndReadsWhatItChooses) {
  const PlanModel sparse = plan_model_of_preset("glm-5");
  ASSERT_EQ(sparse.attention.size(), 1U);
  EXPECT_EQ(sparse.attention[0].kept_tokens(65536), 65536);
  EXPECT_EQ(sparse.attention[0].seen_tokens(65536), 2048);
  EXPECT_EQ(sparse.attention[0].seen_tokens(1024), 1024);
  const PlanModel summaries = plan_model_of_preset("deepseek-v4-flash");
  EXPECT_LT(cache_bytes_per_sequence(summaries, 65536, 1), 0.2 * cache_bytes_per_sequence(sparse, 65536, 1));
}

TEST(ModelConfig, LatentsOfAllHeadsAreKeptByEveryRankOfATensorGroup) {
  const AttentionLayers latent = plan_model_of_preset("deepseek-v3").attention[0];
  EXPECT_DOUBLE_EQ(latent.cached_elements(8), 8 * latent.cached_elements(1));
  const AttentionLayers grouped = plan_model_of_preset("qwen3-235b-a22b").attention[0];
  EXPECT_DOUBLE_EQ(grouped.cached_elements(4), grouped.cached_elements(1));
  EXPECT_DOUBLE_EQ(grouped.cached_elements(8), 2 * grouped.cached_elements(1));
}

TEST(ModelConfig, SaysWhatExpertsAreStoredIn) {
  const std::string common =
      R"({"text_config": {"hidden_size": 64, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
          "num_hidden_layers": 2, "num_attention_heads": 4}, "quantization_config": )";
  const auto stored = [&](const std::string& text) {
    return parse_plan_model(common + text + "}", "c").stored_precision;
  };
  EXPECT_EQ(stored(R"({"quant_method": "mxfp4"})"), ExpertType::kFp4);
  EXPECT_EQ(stored(R"({"quant_method": "fp8", "weight_block_size": [128, 128]})"), ExpertType::kFp8Block);
  EXPECT_EQ(stored(R"({"quant_method": "fp8"})"), ExpertType::kFp8);
  EXPECT_EQ(stored(R"({"quant_method": "modelopt", "quant_algo": "NVFP4"})"), ExpertType::kFp4);
  EXPECT_EQ(stored(R"({"quant_method": "compressed-tensors", "format": "float-quantized"})"), ExpertType::kFp8);
  EXPECT_EQ(stored(R"({"quant_method": "awq"})"), std::nullopt);
  EXPECT_EQ(stored("null"), std::nullopt);
}

TEST(ModelConfig, NamesTheFileAndTheFieldOfWhatIsWrong) {
  const std::string common = R"({"hidden_size": 64, "num_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 2,
                                 "moe_intermediate_size": 32, "num_attention_heads": 4)";
  const std::pair<std::string, std::string_view> cases[] = {
      {"[]", "config.json"},
      {"{}", "hidden_size"},
      {R"({"hidden_size": "wide"})", "hidden_size"},
      {R"({"hidden_size": 1e30})", "hidden_size"},
      {R"({"hidden_size": 64, "num_hidden_layers": 2})", "n_routed_experts"},
      {common + R"(, "layer_types": ["full_attention", "full_attention", "full_attention"]})", "layer_types"},
      {common + R"(, "hybrid_override_pattern": "MX"})", "hybrid_override_pattern"},
      {common + R"(, "moe_layers_enum": "1;2"})", "moe_layers_enum"},
      {common + R"(, "tie_word_embeddings": 3})", "tie_word_embeddings"},
  };
  for (const auto& [text, field] : cases) {
    try {
      (void)parse_plan_model(text, "config.json");
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCorruptInput);
      EXPECT_TRUE(error.message().starts_with("config.json")) << error.message();
      EXPECT_NE(error.message().find(field), std::string::npos) << error.message();
    }
  }
}

}  // namespace
}  // namespace epistle::test
