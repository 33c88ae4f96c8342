#include "topology/machine.hpp"

#include <thread>

#include <sys/utsname.h>

#include <gtest/gtest.h>

namespace epistle {
namespace {

TEST(Machine, AgreesWithTheSystem) {
  const MachineInfo& machine = machine_info();
  utsname names{};
  ASSERT_EQ(::uname(&names), 0);
  EXPECT_EQ(machine.host, names.nodename);
  EXPECT_EQ(machine.kernel, names.release);
  EXPECT_EQ(machine.architecture, names.machine);
  EXPECT_EQ(machine.num_usable_processing_units, static_cast<int>(std::thread::hardware_concurrency()));
}

TEST(Machine, CountsAreInOrder) {
  const MachineInfo& machine = machine_info();
  EXPECT_GE(machine.num_processing_units, 1);
  EXPECT_GE(machine.num_processing_units, machine.num_cores);
  EXPECT_GE(machine.num_cores, machine.num_packages);
  EXPECT_GE(machine.num_processing_units, machine.num_usable_processing_units);
  EXPECT_GE(machine.last_level_cache_bytes, 0);
  EXPECT_GT(machine.memory_bytes, std::int64_t{1} << 20);
}

TEST(Machine, IsReadOnce) { EXPECT_EQ(&machine_info(), &machine_info()); }

}  // namespace
}  // namespace epistle
