// Every cell of the guide's three tables: with all backends there, and with none.
#include <algorithm>
#include <set>
#include <string>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

#include "unit/select/select_query.hpp"

namespace epistle::test {
namespace {

struct Cell {
  const char* name;
  const char* query;
  std::set<std::string> first;  ///< what may come first with all backends there
};

const Cell kCells[] = {
    // By hardware.
    {"H100", "hw=h100-hgx ep=16 model=deepseek-v3", {"deepep"}},
    {"H100AtEp8", "hw=h100-hgx ep=8 model=deepseek-v3", {"deepep"}},
    {"H200", "hw=h200-hgx ep=32 model=kimi-k2", {"deepep"}},
    {"B200", "hw=b200 ep=16 model=deepseek-v3", {"deepep"}},
    {"B300", "hw=b300 ep=64 model=deepseek-v3", {"deepep"}},
    {"Gb200", "hw=gb200-nvl72 ep=16 model=glm-4.5", {"hybridep"}},
    {"Gb300", "hw=gb300-nvl72 ep=32 model=deepseek-v3", {"hybridep"}},
    {"Unknown", "hw=unknown ep=32 model=deepseek-v3", {"alltoall"}},
    // By EP degree.
    {"SmallEp", "hw=h100-hgx ep=4 model=deepseek-v3", {"alltoall", "deepep"}},
    {"SmallEpOnNvl72", "hw=gb200-nvl72 ep=4 model=deepseek-v3", {"alltoall", "deepep"}},
    {"MediumEp", "hw=h100-hgx ep=24 experts=240 model=qwen3-30b-a3b experts=240", {"deepep"}},
    {"LargeEp", "hw=gb200-nvl72 ep=64 model=deepseek-v3", {"hybridep"}},
    {"LargeEpOnGb300", "hw=gb300-nvl72 ep=64 model=qwen3-235b-a22b", {"hybridep"}},
    // By model family.
    {"DeepSeekV3OnGb200", "hw=gb200-nvl72 ep=64 model=deepseek-v3", {"hybridep"}},
    {"DeepSeekV3OnGb300", "hw=gb300-nvl72 ep=64 model=deepseek-r1", {"hybridep"}},
    {"DeepSeekV3OnH100", "hw=h100-hgx ep=64 model=deepseek-v3", {"deepep"}},
    {"Qwen235OnH100", "hw=h100-hgx ep=32 model=qwen3-235b", {"deepep"}},
    {"Qwen235OnGb200", "hw=gb200-nvl72 ep=32 model=qwen3-235b", {"hybridep"}},
    {"Qwen30", "hw=h100-hgx ep=16 model=qwen3-30b", {"deepep"}},
    {"Qwen30AtEp8", "hw=h100-hgx ep=8 model=qwen3-30b", {"deepep"}},
    {"QwenNextBf16", "hw=gb200-nvl72 ep=16 model=qwen3-next", {"alltoall", "hybridep"}},
    {"QwenNextFp8", "hw=gb200-nvl72 ep=16 model=qwen3-next precision=fp8", {"hybridep"}},
    {"QwenNextTight", "hw=gb200-nvl72 ep=16 model=qwen3-next memory", {"hybridep"}},
    {"Vision", "hw=gb200-nvl72 ep=16 model=qwen3-vl-235b", {"alltoall"}},
    {"VisionOnH100", "hw=h100-hgx ep=16 model=qwen3-vl-30b", {"alltoall"}},
};

std::ostream& operator<<(std::ostream& stream, const Cell& cell) { return stream << cell.query; }

class GuideTable : public ::testing::TestWithParam<Cell> {};

TEST_P(GuideTable, SaysWhatTheGuideSays) {
  const Selection selection =
      select_for(std::string(GetParam().query) + " assume=deepep,hybridep,ncclep,deepep-v2,epistle");
  const SelectCandidate& first = selection.candidates.front();
  EXPECT_TRUE(GetParam().first.contains(first.backend)) << first.backend;
  EXPECT_FALSE(first.reasons.empty());
  EXPECT_FALSE(first.flags.megatron.empty());
}

TEST_P(GuideTable, FallsBackToAlltoallWithTheReason) {
  const Selection selection = select_for(std::string(GetParam().query) + " assume=none");
  const SelectCandidate& first = selection.candidates.front();
  EXPECT_EQ(first.backend, "alltoall");
  for (const std::string& wanted : GetParam().first) {
    if (wanted == "alltoall") continue;
    const auto rejected = std::find_if(selection.rejected.begin(), selection.rejected.end(),
                                       [&](const SelectRejection& one) { return one.backend == wanted; });
    ASSERT_NE(rejected, selection.rejected.end());
    EXPECT_EQ(rejected->rule, "availability");
    EXPECT_NE(rejected->reason.find("unavailable"), std::string::npos) << rejected->reason;
    // Where alltoall was not the choice anyway, it says what it stands in for.
    if (GetParam().first.contains("alltoall")) continue;
    EXPECT_TRUE(std::any_of(first.reasons.begin(), first.reasons.end(), [&](const SelectReason& reason) {
      return reason.rule == "fallback" && reason.text.find(wanted) != std::string::npos;
    }));
  }
}

INSTANTIATE_TEST_SUITE_P(Cells, GuideTable, ::testing::ValuesIn(kCells),
                         [](const auto& cell) { return std::string(cell.param.name); });

TEST(Select, UnknownHardwareHasOneMoreToTryAfterCorrectness) {
  const Selection selection = select_for("hw=unknown ep=16 model=deepseek-v3 assume=deepep,hybridep");
  ASSERT_GE(selection.candidates.size(), 2U);
  EXPECT_EQ(selection.candidates[0].backend, "alltoall");
  EXPECT_EQ(selection.candidates[1].backend, "deepep");
  EXPECT_TRUE(std::any_of(selection.candidates[1].reasons.begin(), selection.candidates[1].reasons.end(),
                          [](const SelectReason& reason) { return reason.rule == "hw-unknown-try-deepep"; }));
}

TEST(Select, VisionModelsTestHybridEpSecondOnNvl72) {
  const Selection selection = select_for("hw=gb200-nvl72 ep=16 model=qwen3-vl-30b assume=all");
  ASSERT_GE(selection.candidates.size(), 2U);
  EXPECT_EQ(selection.candidates[0].backend, "alltoall");
  EXPECT_EQ(selection.candidates[1].backend, "hybridep");
}

TEST(Select, SomeAnswersAreNoExpertParallelAllToAll) {
  EXPECT_EQ(select_for("hw=b200 ep=4 phase=decode model=deepseek-v3 assume=all").candidates[0].backend, "allgather");
  EXPECT_EQ(select_for("hw=gb300-nvl72 ep=8 phase=prefill model=deepseek-v3 assume=all").candidates[0].backend,
            "allgather");
  EXPECT_EQ(select_for("hw=h100-hgx ep=1 assume=all").candidates[0].backend, "alltoall");
  EXPECT_EQ(select_for("hw=h100-hgx ep=8 model=mixtral-8x7b assume=all").candidates[0].backend, "alltoall");
}

TEST(Select, DecodeOnHopperIsDeepEpLowLatency) {
  const SelectCandidate first = select_for("hw=h100-hgx ep=16 phase=decode model=deepseek-v3 assume=all").candidates[0];
  EXPECT_EQ(first.backend, "deepep");
  EXPECT_EQ(first.mode, "low_latency");
  EXPECT_EQ(first.flags.vllm, "--enable-expert-parallel --all2all-backend deepep_low_latency");
  EXPECT_EQ(first.flags.sglang, "--moe-a2a-backend deepep --deepep-mode low_latency");
  const SelectCandidate prefill =
      select_for("hw=h100-hgx ep=16 phase=decode tokens=4096 model=deepseek-v3 assume=all").candidates[0];
  EXPECT_EQ(prefill.mode, "normal");
}

TEST(Select, EpistleIsThereOnlyWhereItIsAssumed) {
  const Selection with = select_for("hw=h200-hgx ep=8 model=deepseek-v3 assume=epistle");
  EXPECT_EQ(with.candidates[0].backend, "epistle");
  EXPECT_GT(with.candidates[0].buffer_bytes, 0);
  const Selection without = select_for("hw=h200-hgx ep=8 model=deepseek-v3 assume=none");
  for (const SelectCandidate& candidate : without.candidates) EXPECT_NE(candidate.backend, "epistle");
}

TEST(Select, EpistleCrossesDomainsByHybrid) {
  const SelectFacts facts = facts_of("hw=h200-hgx ep=16 model=deepseek-v3 assume=epistle");
  const Selection selection = select_dispatcher(facts);
  const auto found = std::find_if(selection.candidates.begin(), selection.candidates.end(),
                                  [](const SelectCandidate& candidate) { return candidate.backend == "epistle"; });
  ASSERT_NE(found, selection.candidates.end());
  EXPECT_EQ(found->mode, "hybrid");
  EXPECT_GT(found->buffer_bytes, 0);
  // Unmeasured between machines: behind what needs no package.
  EXPECT_EQ(selection.candidates[0].backend, "alltoall");
  EXPECT_EQ(select_for("hw=h200-hgx ep=16 phase=decode assume=epistle").candidates.size(), 3U);
}

TEST(Select, RowsOnTheNetworkAreOnePerExpertRankOrDomainElsewhere) {
  const SelectFacts facts = facts_of("ep=16 experts=128 topk=8");
  EXPECT_DOUBLE_EQ(facts.network_rows_per_expert(), 4.0);
  EXPECT_LT(facts.network_rows_per_rank(), 4.0);
  EXPECT_GT(facts.network_rows_per_rank(), facts.network_rows_per_domain());
  // Nearly every token has an expert in the other of two domains.
  EXPECT_NEAR(facts.network_rows_per_domain(), 0.997, 0.003);
  EXPECT_EQ(facts_of("ep=8").network_rows_per_domain(), 0.0);
}

TEST(Select, FlagsAndCountsGoByVersion) {
  const SelectCandidate newest = select_for("hw=h100-hgx ep=16 assume=deepep").candidates[0];
  EXPECT_EQ(newest.flags.megatron,
            "--moe-token-dispatcher-type flex --moe-flex-dispatcher-backend deepep --moe-flex-dispatcher-num-sms 20 "
            "--moe-router-dtype fp32");
  EXPECT_NE(newest.flags.megatron_old.find("--moe-deepep-num-sms 20"), std::string::npos);
  const SelectCandidate old = select_for("hw=h100-hgx ep=16 assume=deepep megatron=0.15").candidates[0];
  EXPECT_NE(old.flags.megatron.find("--moe-deepep-num-sms 20"), std::string::npos);
  EXPECT_EQ(select_for("hw=gb200-nvl72 ep=64 model=deepseek-v3 assume=hybridep").candidates[0].num_sms, 24);
  EXPECT_EQ(select_for("hw=gb200-nvl72 ep=144 model=deepseek-v3 experts=288 assume=hybridep").candidates[0].num_sms, 8);
  EXPECT_EQ(select_for("hw=gb200-nvl72 ep=64 model=deepseek-v3 assume=hybridep megatron=0.15").candidates[0].num_sms,
            16);
}

TEST(Select, HybridEpComesWithItsDomain) {
  const SelectCandidate first = select_for("hw=gb200-nvl72 ep=64 model=deepseek-v3 assume=hybridep").candidates[0];
  const std::vector<std::pair<std::string, std::string>> wanted = {{"NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN", "64"},
                                                                   {"USE_MNNVL", "1"}};
  EXPECT_EQ(first.environment, wanted);
}

TEST(Select, RejectsNonsense) {
  EXPECT_THROW(static_cast<void>(select_for("ep=256 model=mixtral-8x7b")), Error);
  EXPECT_THROW(static_cast<void>(select_for("topk=300")), Error);
  EXPECT_THROW(static_cast<void>(find_backend("deepeep")), Error);
}

}  // namespace
}  // namespace epistle::test
