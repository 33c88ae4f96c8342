#include "measure/gpu_driver.hpp"

#include <gtest/gtest.h>

namespace epistle {
namespace {

TEST(GpuDriver, VersionIsTheFirstNumberWithDots) {
  EXPECT_EQ(parse_driver_version("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  "
                                 "(dvs-builder@U22)  Tue Oct 14 2025\nGCC version:  gcc version 13.3.0 (Ubuntu)\n"),
            "580.159.04");
  EXPECT_EQ(parse_driver_version("NVRM version: NVIDIA UNIX x86_64 Kernel Module  525.60  Wed"), "525.60");
}

TEST(GpuDriver, WithoutAVersionThereIsNone) {
  EXPECT_EQ(parse_driver_version(""), "");
  EXPECT_EQ(parse_driver_version("NVRM version: 42 . .5 5. x1.2\nGCC 13.3.0"), "");
}

}  // namespace
}  // namespace epistle
