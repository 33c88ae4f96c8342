#include "topology/memory.hpp"

#include <filesystem>
#include <string>

#include <gtest/gtest.h>

#include "support/temp_dir.hpp"
#include "topology/machine.hpp"

namespace epistle {
namespace {

constexpr std::int64_t kKibi = 1024;

/// A root folder with made-up proc and cgroup files.
class FakeRoot {
 public:
  void write(const std::string& path, const std::string& content) const {
    std::filesystem::create_directories((dir_.path() / path).parent_path());
    dir_.write(path, content);
  }
  [[nodiscard]] AvailableMemory look() const { return available_memory(dir_.path().string()); }
  [[nodiscard]] std::int64_t available() const { return look().bytes; }

 private:
  test::TempDir dir_;
};

void write_meminfo(const FakeRoot& root, std::int64_t kibibytes) {
  root.write("proc/meminfo", "MemTotal:       32000000 kB\nMemFree:        1 kB\nMemAvailable:   " +
                                 std::to_string(kibibytes) + " kB\n");
}

TEST(AvailableMemory, IsPartOfThisMachinesMemory) {
  const std::int64_t available_bytes = available_memory().bytes;
  EXPECT_GT(available_bytes, 0);
  EXPECT_LT(available_bytes, machine_info().memory_bytes * 2);  // memory can be added while a machine runs
}

TEST(AvailableMemory, IsUnknownWithoutTheKernelsFiles) { EXPECT_EQ(FakeRoot().available(), -1); }

TEST(AvailableMemory, ComesFromMeminfoWhereNoGroupLimits) {
  const FakeRoot root;
  write_meminfo(root, 5000);
  EXPECT_EQ(root.available(), 5000 * kKibi);
  EXPECT_EQ(root.look().limit_bytes, 32000000 * kKibi);
  EXPECT_EQ(root.look().owner(), "this machine");
  root.write("proc/self/cgroup", "0::/user.slice\n");
  root.write("sys/fs/cgroup/user.slice/memory.max", "max\n");
  root.write("sys/fs/cgroup/user.slice/memory.current", "4096\n");
  EXPECT_EQ(root.available(), 5000 * kKibi);
}

TEST(AvailableMemory, TakesTheTightestGroupOnTheWayToTheRoot) {
  const FakeRoot root;
  write_meminfo(root, 50000);
  root.write("proc/self/cgroup", "0::/job/step\n");
  root.write("sys/fs/cgroup/job/step/memory.max", "20000000\n");
  root.write("sys/fs/cgroup/job/step/memory.current", "5000000\n");
  EXPECT_EQ(root.available(), 15000000);
  EXPECT_EQ(root.look().limit_bytes, 20000000);
  root.write("sys/fs/cgroup/job/memory.max", "9000000\n");
  root.write("sys/fs/cgroup/job/memory.current", "6000000\n");
  EXPECT_EQ(root.available(), 3000000);
  EXPECT_EQ(root.look().limit_bytes, 9000000);
  EXPECT_EQ(root.look().owner(), "this control group");
  // Page cache that nobody has used lately can go.
  root.write("sys/fs/cgroup/job/memory.stat", "anon 4000000\ninactive_file 1500000\n");
  EXPECT_EQ(root.available(), 4500000);
}

TEST(AvailableMemory, ReadsTheRootGroupOfAContainer) {
  const FakeRoot root;
  write_meminfo(root, 50000);
  root.write("proc/self/cgroup", "0::/somewhere/on/the/host\n");
  root.write("sys/fs/cgroup/memory.max", "7000000\n");
  root.write("sys/fs/cgroup/memory.current", "1000000\n");
  EXPECT_EQ(root.available(), 6000000);
}

TEST(AvailableMemory, ReadsVersionOneGroups) {
  const FakeRoot root;
  write_meminfo(root, 50000);
  root.write("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/x\n");
  root.write("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "8000000\n");
  root.write("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "9000000\n");
  EXPECT_EQ(root.available(), 0);  // over the limit already
  root.write("sys/fs/cgroup/memory/x/memory.stat", "inactive_file 1\ntotal_inactive_file 3000000\n");
  EXPECT_EQ(root.available(), 2000000);
}

}  // namespace
}  // namespace epistle
