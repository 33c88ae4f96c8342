// What of a NUMA node is open to this process.
#include "topology/node_affinity.hpp"

#include <filesystem>
#include <string>

#include <sched.h>

#include <gtest/gtest.h>

#include "support/temp_dir.hpp"

namespace epistle {
namespace {

/// A folder as sysfs has it, with one node.
struct NodeFolder {
  explicit NodeFolder(const std::string& cpu_list) {
    std::filesystem::create_directories(dir.file("node0"));
    dir.write("node0/cpulist", cpu_list + "\n");
  }
  [[nodiscard]] std::string path() const { return dir.file(""); }

  test::TempDir dir;
};

TEST(NodeAffinity, CountsUnitsOfTheNodeAndThoseThatAreOpen) {
  cpu_set_t open;
  CPU_ZERO(&open);
  ASSERT_EQ(sched_getaffinity(0, sizeof(open), &open), 0);
  const NodeFolder folder("0-1023");
  const auto affinity = node_affinity(0, folder.path());
  ASSERT_TRUE(affinity);
  EXPECT_EQ(affinity->num_units, 1024);
  EXPECT_EQ(affinity->num_open, CPU_COUNT(&open));
}

TEST(NodeAffinity, ReadsListsOfRanges) {
  const NodeFolder folder("0-3,8,10-11");
  EXPECT_EQ(node_affinity(0, folder.path())->num_units, 7);
}

TEST(NodeAffinity, KnowsNothingOfANodeThatIsNotToldOrNotThere) {
  const NodeFolder folder("0-x");
  EXPECT_FALSE(node_affinity(-1, folder.path()));
  EXPECT_FALSE(node_affinity(7, folder.path()));
  EXPECT_FALSE(node_affinity(0, folder.path()));  // no list
}

}  // namespace
}  // namespace epistle
