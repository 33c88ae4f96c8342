#include "epistle/models.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <string>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

namespace epistle {
namespace {

TEST(Models, EveryPresetIsUsable) {
  ASSERT_FALSE(model_presets().empty());
  for (const ModelPreset& preset : model_presets()) {
    SCOPED_TRACE(preset.name);
    EXPECT_GT(preset.hidden, 0);
    EXPECT_GE(preset.num_experts, preset.top_k);
    EXPECT_GE(preset.top_k, 1);
    EXPECT_GT(preset.expert_ffn, 0);
    EXPECT_GT(preset.num_layers, preset.num_dense_first);
    EXPECT_EQ(preset.num_experts % preset.num_groups, 0);
    EXPECT_LE(preset.groups_per_token, preset.num_groups);
    EXPECT_LE(preset.top_k, preset.groups_per_token * (preset.num_experts / preset.num_groups));
    EXPECT_FALSE(preset.title.empty());
    EXPECT_FALSE(preset.shared.empty());
    EXPECT_FALSE(preset.source.empty());
  }
}

TEST(Models, NamesAreUniqueAndCanonical) {
  std::map<std::string, std::string> owner;
  const auto claim = [&owner](std::string_view name, std::string_view preset) {
    EXPECT_FALSE(name.empty()) << preset;
    EXPECT_EQ(name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789.-"), std::string_view::npos) << name;
    EXPECT_TRUE(owner.emplace(name, preset).second) << name << " stands in " << preset << " and elsewhere";
    EXPECT_EQ(find_model(name).name, preset);
  };
  for (const ModelPreset& preset : model_presets()) {
    claim(preset.name, preset.name);
    std::string aliases(preset.aliases);
    while (!aliases.empty()) {
      const std::size_t comma = std::min(aliases.find(','), aliases.size());
      claim(aliases.substr(0, comma), preset.name);
      aliases.erase(0, comma + 1);
    }
  }
}

TEST(Models, KnownShapes) {
  const ModelPreset& v3 = find_model("deepseek-v3");
  EXPECT_EQ(v3.hidden, 7168);
  EXPECT_EQ(v3.num_experts, 256);
  EXPECT_EQ(v3.top_k, 8);
  EXPECT_EQ(v3.num_dense_first, 3);
  EXPECT_EQ(v3.num_groups, 8);
  EXPECT_EQ(v3.groups_per_token, 4);
  EXPECT_EQ(find_model("nemotron-3-super").hidden, 1024) << "the routed latent";
  EXPECT_EQ(find_model("nemotron-3-super").top_k, 22);
  EXPECT_EQ(find_model("kimi-k3").hidden, 3584) << "the routed latent";
  EXPECT_EQ(find_model("gpt-oss-120b").hidden, 2880);
  EXPECT_EQ(find_model("gpt-oss-20b").num_experts, 32);
  EXPECT_EQ(find_model("mixtral-8x22b").expert_ffn, 16384);
  EXPECT_EQ(find_model("qwen3.5-35b").hidden, 2048);
  EXPECT_EQ(find_model("llama-4-scout").num_experts, 16);
}

TEST(Models, LookupIgnoresCaseAndTakesAliases) {
  EXPECT_EQ(&find_model("DeepSeek-R1"), &find_model("deepseek-v3"));
  EXPECT_EQ(&find_model("DEEPSEEK-V3.2"), &find_model("deepseek-v3"));
  EXPECT_EQ(&find_model("Qwen3-30B-A3B"), &find_model("qwen3-30b"));
}

TEST(Models, UnknownNamesListTheClosest) {
  const auto message_for = [](std::string_view name) {
    try {
      (void)find_model(name);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kNotFound);
      return std::string(error.what());
    }
    return std::string("found");
  };
  EXPECT_NE(message_for("deepsek-v3").find("deepseek-v3"), std::string::npos);
  EXPECT_NE(message_for("mixtral8x7b").find("mixtral-8x7b"), std::string::npos);
  EXPECT_NE(message_for("qwen3").find("qwen3-30b-a3b"), std::string::npos) << "names that begin with it come first";
  EXPECT_NE(message_for("GPT-OSS").find("gpt-oss-20b"), std::string::npos);
  EXPECT_NE(message_for("").find("closest names"), std::string::npos);
}

}  // namespace
}  // namespace epistle
