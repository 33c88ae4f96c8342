// The values of the engines' backend options by release.
#include "select/engine_backends.hpp"

#include <set>
#include <string_view>

#include <gtest/gtest.h>

#include "unit/select/select_query.hpp"

namespace epistle::test {
namespace {

TEST(EngineBackends, EveryRowSaysWhenAndWhereItWasRead) {
  for (const auto& table : {vllm_backends(), sglang_backends()}) {
    std::set<std::string_view> names;
    for (const EngineBackend& backend : table) {
      EXPECT_TRUE(names.insert(backend.name).second) << backend.name;
      EXPECT_FALSE(backend.source.empty()) << backend.name;
      EXPECT_TRUE(backend.date.starts_with("20")) << backend.name;
      EXPECT_EQ(backend.until.has_value(), !backend.now.empty()) << backend.name;
      if (!backend.until) continue;
      EXPECT_LT(backend.since, *backend.until) << backend.name;
      EXPECT_NE(find_engine_backend(table, backend.now), nullptr) << backend.name;
    }
  }
}

TEST(EngineBackends, AReleaseHasWhatItsTableSays) {
  const EngineBackend& pplx = *find_engine_backend(vllm_backends(), "pplx");
  EXPECT_TRUE(pplx.is_in(parse_version("0.12.0")));
  EXPECT_TRUE(pplx.is_gone(parse_version("0.16")));
  EXPECT_TRUE(pplx.is_gone(std::nullopt));  // the newest release
  const EngineBackend& second = *find_engine_backend(vllm_backends(), "deepep_v2");
  EXPECT_TRUE(second.is_too_new(parse_version("0.11")));
  EXPECT_TRUE(second.is_in(std::nullopt));
  EXPECT_EQ(find_engine_backend(vllm_backends(), "deepep"), nullptr);
}

TEST(EngineBackends, AVersionWithoutAThirdNumberMeansTheNewestOfThem) {
  const EngineBackend& megamoe = *find_engine_backend(sglang_backends(), "megamoe");
  EXPECT_TRUE(megamoe.is_in(parse_version("0.5")));
  EXPECT_TRUE(megamoe.is_too_new(parse_version("0.5.6")));
  EXPECT_TRUE(megamoe.is_in(parse_version("0.5.10")));
  EXPECT_TRUE(megamoe.is_too_new(parse_version("0.4.9.post2")));
  EXPECT_EQ(to_string(*parse_version("0.5.6")), "0.5.6");
  EXPECT_EQ(to_string(*parse_version("v0.20")), "0.20");
  EXPECT_EQ(to_string(*parse_version("0.11.0rc2")), "0.11");
}

TEST(EngineBackends, FlagsNameOnlyWhatTheReleaseHas) {
  SelectQuery query = facts_of("hw=gb200-nvl72 ep=16 model=deepseek-v3 assume=all").query;
  query.vllm = parse_version("0.12");
  query.sglang = parse_version("0.5.3");
  for (const SelectCandidate& candidate : select_dispatcher(make_facts(query)).candidates) {
    if (candidate.backend == "nixl" || candidate.backend == "flashinfer" || candidate.backend == "deepep-v2") {
      EXPECT_EQ(candidate.flags.vllm, "") << candidate.backend;
      EXPECT_EQ(candidate.flags.sglang, "") << candidate.backend;
    }
    if (candidate.backend == "deepep") {
      EXPECT_NE(candidate.flags.vllm.find("deepep_"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace epistle::test
