// What the layout predicts is what the operating system has committed, to the byte, also after buffers grew.
#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"

#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

class BufferBytes : public ::testing::TestWithParam<std::tuple<std::string, OutputLayout, Sizing, CombineMode>> {
 protected:
  DispatcherConfig config() const {
    const auto& [name, layout, sizing, combine] = GetParam();
    DispatcherConfig config;
    config.dtype = DType::kFp8E4m3;  // with scales, and rows of the combine type wider than the payload's
    config.hidden = 512;
    config.num_experts = 11;
    config.top_k = 4;
    config.max_tokens = 300;
    config.layout = layout;
    config.alignment = 8;
    config.sizing = sizing;
    config.combine = combine;
    config.overflow = OverflowPolicy::kDrop;
    if (sizing == Sizing::kCapacity || layout == OutputLayout::kExpertSlots) config.capacity_rows = 700;
    return config;
  }
};

TEST_P(BufferBytes, AreThoseOfTheOperatingSystem) {
  run_thread_ranks(3, [&](Group& group) {
    const auto dispatcher = make_dispatcher(std::get<0>(GetParam()), group, config());
    const auto expect_exact = [&](const char* when) {
      EXPECT_EQ(dispatcher->buffer_bytes(), dispatcher->resident_bytes()) << when << ", rank " << group.rank();
      EXPECT_LE(dispatcher->buffer_bytes(), dispatcher->layout().reserved_bytes()) << when;
    };
    expect_exact("created");
    const std::int64_t at_first = dispatcher->buffer_bytes();
    std::int64_t before = at_first;
    // Growing, shrinking and growing again; each rank differently.
    for (const std::int64_t num_tokens : {1, 40, 3, 300}) {
      Scenario scenario;
      scenario.config = config();
      for (const std::int64_t part : {1, 2, 3}) scenario.tokens_per_rank.push_back(num_tokens / part);
      const Play play(scenario, static_cast<int>(num_tokens));
      const Mismatch mismatch = round_trip(*dispatcher, group.rank(), play);
      EXPECT_FALSE(mismatch.has_value()) << *mismatch;
      expect_exact("after a round trip");
      EXPECT_GE(dispatcher->buffer_bytes(), before);
      if (config().sizing == Sizing::kCapacity) {
        EXPECT_EQ(dispatcher->buffer_bytes(), at_first);
      }
      before = dispatcher->buffer_bytes();
    }
    if (config().sizing == Sizing::kExact) {
      EXPECT_GT(before, at_first);
    }

    // Gradients of the weights are committed when they are asked for.
    const Play play({.config = config(), .tokens_per_rank = {9, 9, 9}}, 0);
    const Handle handle = dispatcher->prepare(play.table(group.rank()).view());
    const auto num_weights =
        static_cast<std::size_t>(handle.output().num_rows * dispatcher->layout().weights_per_row());
    const std::vector<float> grad_weights(std::max<std::size_t>(num_weights, 1));
    const auto grad_rows = play.values(4, group.rank(), handle.output().num_rows);
    std::vector<std::byte> grad_out(static_cast<std::size_t>(9 * play.combine_row_bytes()));
    std::vector<float> grad_topk(9 * 4);
    dispatcher->dispatch_backward(handle, grad_rows.data(), grad_weights.data(), grad_out.data(),
                                  static_cast<std::int64_t>(grad_out.size()), grad_topk.data());
    expect_exact("after a backward pass");
    EXPECT_GT(dispatcher->buffer_bytes(), before);
  });
}

std::string case_name(const ::testing::TestParamInfo<BufferBytes::ParamType>& info) {
  const auto& [name, layout, sizing, combine] = info.param;
  std::string text = fmt::format("{}_{}_{}_{}", name, to_string(layout), to_string(sizing), to_string(combine));
  std::replace(text.begin(), text.end(), '-', '_');
  return text;
}

INSTANTIATE_TEST_SUITE_P(All, BufferBytes,
                         ::testing::Combine(::testing::Values("direct", "alltoall", "reference"),
                                            ::testing::Values(OutputLayout::kTokenMajor, OutputLayout::kExpertMajor,
                                                              OutputLayout::kExpertSlots),
                                            ::testing::Values(Sizing::kExact, Sizing::kCapacity),
                                            ::testing::Values(CombineMode::kHierarchical, CombineMode::kFlat)),
                         case_name);

}  // namespace
}  // namespace epistle::testing
