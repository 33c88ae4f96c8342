#include "topology/nvml.hpp"

#include <gtest/gtest.h>

#include "topology/nccl_version.hpp"

namespace epistle::test {
namespace {

GpuProbe gpu_with_peers(const std::string& name, std::vector<std::int32_t> peers) {
  GpuProbe gpu;
  gpu.name = name;
  gpu.nvlink_peers = std::move(peers);
  return gpu;
}

TEST(Nvml, WithoutTheLibraryTheReasonIsSaid) {
  const NvmlProbe probe = probe_nvml("libepistle-has-no-such-library.so");
  EXPECT_TRUE(probe.gpus.empty());
  EXPECT_NE(probe.missing.find("libepistle-has-no-such-library.so"), std::string::npos) << probe.missing;
  EXPECT_EQ(preset_of(probe), "unknown");
  EXPECT_TRUE(nvlink_groups(probe).empty());
}

TEST(Nvml, ALibraryThatIsSomethingElseIsNoCrash) {
  const NvmlProbe probe = probe_nvml("libz.so.1");
  EXPECT_TRUE(probe.gpus.empty());
  EXPECT_FALSE(probe.missing.empty());
}

TEST(Nvml, GroupsAreWhoReachesWhom) {
  NvmlProbe probe;
  probe.gpus = {gpu_with_peers("NVIDIA H100", {2}), gpu_with_peers("NVIDIA H100", {}),
                gpu_with_peers("NVIDIA H100", {0, 3}), gpu_with_peers("NVIDIA H100", {2})};
  EXPECT_EQ(nvlink_groups(probe), (std::vector<std::vector<std::int32_t>>{{0, 2, 3}, {1}}));
}

TEST(Nvml, NamesLeadToPresets) {
  const auto preset = [](const std::string& name) {
    NvmlProbe probe;
    probe.gpus = {gpu_with_peers(name, {})};
    return preset_of(probe);
  };
  EXPECT_EQ(preset("NVIDIA H100 80GB HBM3"), "h100-hgx");
  EXPECT_EQ(preset("NVIDIA H200"), "h200-hgx");
  EXPECT_EQ(preset("NVIDIA H20"), "h20");
  EXPECT_EQ(preset("NVIDIA B200"), "b200");
  EXPECT_EQ(preset("NVIDIA GB200"), "gb200-nvl72");
  EXPECT_EQ(preset("NVIDIA A100-SXM4-80GB"), "a100");
  EXPECT_EQ(preset("NVIDIA RTX PRO 6000 Blackwell Server Edition"), "rtx-pro-6000");
  EXPECT_EQ(preset("Tesla V100-SXM2-32GB"), "unknown");
}

TEST(NcclVersion, NothingWithoutTheLibrary) {
  EXPECT_EQ(probe_nccl_version("libepistle-has-no-such-library.so"), "");
  EXPECT_EQ(probe_nccl_version("libz.so.1"), "");
}

}  // namespace
}  // namespace epistle::test
