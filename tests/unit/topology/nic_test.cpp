#include "topology/nic.hpp"

#include <filesystem>

#include <gtest/gtest.h>

#include "support/temp_dir.hpp"

namespace epistle::test {
namespace {

namespace fs = std::filesystem;

/// A card as the kernel shows it.
void add_card(const TempDir& root, const std::string& device, const std::string& driver, const std::string& link_layer,
              const std::string& rate) {
  const std::string folder = "sys/class/infiniband/" + device;
  fs::create_directories(root.file(folder + "/ports/1"));
  fs::create_directories(root.file(folder + "/device"));
  fs::create_directories(root.file("drivers/" + driver));
  fs::create_directory_symlink(root.file("drivers/" + driver), root.file(folder + "/device/driver"));
  root.write(folder + "/ports/1/link_layer", link_layer + "\n");
  root.write(folder + "/ports/1/rate", rate + "\n");
  root.write(folder + "/ports/1/state", "4: ACTIVE\n");
  root.write(folder + "/device/numa_node", "1\n");
}

TEST(Nics, AreReadFromSysfs) {
  const TempDir root;
  add_card(root, "mlx5_0", "mlx5_core", "InfiniBand", "400 Gb/sec (4X NDR)");
  add_card(root, "mlx5_1", "mlx5_core", "Ethernet", "100 Gb/sec (4X EDR)");
  add_card(root, "rdmap16s27", "efa", "Unspecified", "broken");
  const std::vector<NicPort> nics = probe_nics(root.path().string());
  ASSERT_EQ(nics.size(), 3U);
  EXPECT_EQ(nics[0].device, "mlx5_0");
  EXPECT_EQ(nics[0].kind, NicKind::kInfiniBand);
  EXPECT_EQ(nics[0].gigabits_per_s, 400);
  EXPECT_EQ(nics[0].state, "ACTIVE");
  EXPECT_EQ(nics[0].driver, "mlx5_core");
  EXPECT_EQ(nics[0].numa_node, 1);
  EXPECT_EQ(nics[1].kind, NicKind::kRoce);
  EXPECT_EQ(nics[2].kind, NicKind::kEfa);
  EXPECT_EQ(nics[2].gigabits_per_s, 0);
}

TEST(Nics, AMachineWithoutAnyHasNone) {
  const TempDir root;
  EXPECT_TRUE(probe_nics(root.path().string()).empty());
}

}  // namespace
}  // namespace epistle::test
