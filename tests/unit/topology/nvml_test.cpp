#include "topology/nvml.hpp"

#include <gtest/gtest.h>

#include "support/environment.hpp"
#include "support/temp_dir.hpp"
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

/// With GPUs as the fake describes them; `has_channel`: one of IMEX.
NvlinkFabric probe_fake_fabric(const std::string& gpus, bool has_channel = true) {
  ScopedEnvironment environment;
  environment.set("EPISTLE_FAKE_GPUS", gpus);
  const TempDir channels;
  if (has_channel) channels.write("channel0", "");
  return probe_nvlink_fabric(EPISTLE_FAKE_NVML, channels.path().string());
}

TEST(NvlinkFabricProbe, IsTheClusterAndCliqueThatAllGpusAreIn) {
  const NvlinkFabric probe = probe_fake_fabric("171:5:3,171:5:3");
  EXPECT_EQ(probe.fabric, "abababababababababababababababab:5");
  EXPECT_EQ(probe.lack, "");
}

TEST(NvlinkFabricProbe, IsNoneWhereGpusAreInSeveral) {
  EXPECT_NE(probe_fake_fabric("1:5:3,1:6:3").lack.find("several NVLink fabrics"), std::string::npos);
  EXPECT_NE(probe_fake_fabric("1:5:3,2:5:3").lack.find("several NVLink fabrics"), std::string::npos);
  EXPECT_NE(probe_fake_fabric("1:5:3,0:0:0").lack.find("several NVLink fabrics"), std::string::npos);
  EXPECT_EQ(probe_fake_fabric("1:5:3,1:6:3").fabric, "");
}

TEST(NvlinkFabricProbe, IsNoneOnAMachineWithASwitchOfItsOwn) {
  const NvlinkFabric probe = probe_fake_fabric("0:0:3,0:0:3");
  EXPECT_EQ(probe.fabric, "");
  EXPECT_NE(probe.lack.find("no NVLink fabric of several hosts"), std::string::npos) << probe.lack;
}

TEST(NvlinkFabricProbe, IsNoneBeforeItHasBeenJoined) {
  EXPECT_EQ(probe_fake_fabric("1:5:2,1:5:2").fabric, "");
  EXPECT_EQ(probe_fake_fabric("").lack, "no GPU was found");
}

TEST(NvlinkFabricProbe, IsNoneWithoutAChannelAndSaysHowToGetOne) {
  const NvlinkFabric probe = probe_fake_fabric("1:5:3", false);
  EXPECT_EQ(probe.fabric, "");
  EXPECT_NE(probe.lack.find("configure nvidia-imex"), std::string::npos) << probe.lack;
  EXPECT_NE(probe_nvlink_fabric(EPISTLE_FAKE_NVML, "/no/such/folder").lack, "");
}

TEST(NcclVersion, NothingWithoutTheLibrary) {
  EXPECT_EQ(probe_nccl_version("libepistle-has-no-such-library.so"), "");
  EXPECT_EQ(probe_nccl_version("libz.so.1"), "");
}

}  // namespace
}  // namespace epistle::test
