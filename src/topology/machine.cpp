#include "topology/machine.hpp"

#include <memory>
#include <type_traits>

#include <hwloc.h>
#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

namespace epistle {
namespace {

struct TopologyDeleter {
  void operator()(hwloc_topology_t topology) const noexcept { hwloc_topology_destroy(topology); }
};
using Topology = std::unique_ptr<std::remove_pointer_t<hwloc_topology_t>, TopologyDeleter>;

Topology load_topology() {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) return nullptr;
  Topology topology(raw);
  // Without sysfs, as in a bare chroot, it would complain to the terminal; it asks the processor all the same.
  if (::access("/sys/devices/system/cpu", R_OK) != 0) {
    static_cast<void>(hwloc_topology_set_components(raw, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, "linux"));
  }
  if (hwloc_topology_load(raw) != 0) return nullptr;
  return topology;
}

std::int32_t count(hwloc_topology_t topology, hwloc_obj_type_t type) {
  const int num_objects = hwloc_get_nbobjs_by_type(topology, type);
  return num_objects > 0 ? num_objects : 0;
}

std::int64_t last_level_cache_bytes(hwloc_topology_t topology) {
  for (const hwloc_obj_type_t level : {HWLOC_OBJ_L3CACHE, HWLOC_OBJ_L2CACHE}) {
    const hwloc_obj_t cache = hwloc_get_obj_by_type(topology, level, 0);
    if (cache != nullptr) return static_cast<std::int64_t>(cache->attr->cache.size);
  }
  return 0;
}

MachineInfo read_machine() {
  MachineInfo info;
  utsname names{};
  if (::uname(&names) == 0) {
    info.architecture = names.machine;
    info.kernel = names.release;
    info.host = names.nodename;
  }
  cpu_set_t usable;
  CPU_ZERO(&usable);
  if (::sched_getaffinity(0, sizeof(usable), &usable) == 0) info.num_usable_processing_units = CPU_COUNT(&usable);
  // Not from hwloc, which leaves out memory that was added while the machine ran.
  info.memory_bytes = std::int64_t{::sysconf(_SC_PHYS_PAGES)} * ::sysconf(_SC_PAGESIZE);
  const Topology topology = load_topology();
  if (topology == nullptr) return info;
  info.num_packages = count(topology.get(), HWLOC_OBJ_PACKAGE);
  info.num_numa_nodes = count(topology.get(), HWLOC_OBJ_NUMANODE);
  info.num_cores = count(topology.get(), HWLOC_OBJ_CORE);
  info.num_processing_units = count(topology.get(), HWLOC_OBJ_PU);
  info.last_level_cache_bytes = last_level_cache_bytes(topology.get());
  const hwloc_obj_t package = hwloc_get_obj_by_type(topology.get(), HWLOC_OBJ_PACKAGE, 0);
  const char* model = package != nullptr ? hwloc_obj_get_info_by_name(package, "CPUModel") : nullptr;
  if (model != nullptr) info.cpu_model = model;
  return info;
}

}  // namespace

const MachineInfo& machine_info() {
  static const MachineInfo info = read_machine();
  return info;
}

}  // namespace epistle
