// Files of /proc that cannot be read are no files, and no exception.
#include <string>

#include <gtest/gtest.h>

#include "core/whole_file.hpp"

namespace epistle::test {
namespace {

TEST(KernelFile, IsReadWhole) {
  const auto text = read_kernel_file("/proc/self/comm");
  ASSERT_TRUE(text.has_value());
  EXPECT_EQ(text->back(), '\n');
}

TEST(KernelFile, IsNothingWhereItIsNotThere) { EXPECT_FALSE(read_kernel_file("/proc/self/no-such-file").has_value()); }

// As a file of a process that has ended since it was opened: opening succeeds, reading does not.
TEST(KernelFile, IsNothingWhereReadingFails) {
  EXPECT_FALSE(read_kernel_file("/proc/self/mem").has_value());
  EXPECT_FALSE(read_kernel_file("/proc/self").has_value());
}

}  // namespace
}  // namespace epistle::test
