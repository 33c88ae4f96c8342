// Placements that change between two calls: see support/placement_cases.hpp.
#include <string>

#include <gtest/gtest.h>

#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/dispatcher_names.hpp"
#include "support/placement_cases.hpp"

namespace epistle::testing {
namespace {

class CudaPlacements : public OnGpu<::testing::TestWithParam<std::string>> {
 protected:
  static PlacedDispatcher dispatcher() { return {GetParam(), on_cuda({.device = 0})}; }
};

TEST_P(CudaPlacements, RanksThatGiveDifferentOnesAllHearOfIt) { expect_different_ones_are_told(dispatcher()); }
TEST_P(CudaPlacements, OneThatIsNotNewerIsRefused) { expect_older_one_is_refused(dispatcher()); }
TEST_P(CudaPlacements, OneThatHasNoRoomIsRefused) { expect_one_without_room_is_refused(dispatcher()); }
TEST_P(CudaPlacements, DispatchersOfTheTrivialOneKeepIt) { expect_trivial_one_is_kept(dispatcher()); }
TEST_P(CudaPlacements, HandlesGoOnWithTheirOwn) { expect_handles_go_on(dispatcher()); }
TEST_P(CudaPlacements, FlatSumsAreThoseOfTheTrivialOne) { expect_flat_sums_of_the_trivial_one(dispatcher()); }
TEST_P(CudaPlacements, RefusedRoutingsDoNotCount) { expect_refused_routings_do_not_count(dispatcher()); }
TEST_P(CudaPlacements, CountsCanBeReadFromAnotherThread) { expect_counts_can_be_read_meanwhile(dispatcher()); }

INSTANTIATE_TEST_SUITE_P(All, CudaPlacements, ::testing::ValuesIn(one_gpu_dispatcher_names()),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace epistle::testing
