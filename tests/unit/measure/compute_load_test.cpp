#include "measure/compute_load.hpp"

#include <gtest/gtest.h>

namespace epistle::test {
namespace {

TEST(ComputeLoad, EndsWhatIsStartedAndCanBeStartedAgain) {
  ComputeLoad load;
  load.wait();  // nothing was started
  for (int round = 0; round < 3; ++round) {
    load.start(2);
    load.wait();
  }
  load.start(1);  // the end waits for it
}

TEST(ComputeLoad, WorkForAPairIsAsLongAsThePair) {
  EXPECT_EQ(units_per_pair(100.0, 10.0), 10);
  EXPECT_EQ(units_per_pair(100.0, 3000.0), 1) << "some, in any case";
  EXPECT_EQ(units_per_pair(0.0, 0.0), 1);
}

}  // namespace
}  // namespace epistle::test
