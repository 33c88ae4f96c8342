// What epistle doctor prints.
#pragma once

#include <string>
#include <vector>

#include "doctor_own.hpp"
#include "doctor_packages.hpp"
#include "doctor_types.hpp"
#include "fabric/fabric.hpp"
#include "json_text.hpp"
#include "topology/nic.hpp"
#include "topology/nvml.hpp"

namespace epistle::cli {

/// What rows could travel by between hosts.
struct FabricProbe {
  std::string library;
  std::vector<FabricWay> ways;    ///< the first of libfabric goes first
  std::vector<std::string> nics;  ///< cards that ranks of a host take in turn
  std::string chosen;             ///< the provider that a group of several hosts takes, and the cards; empty = none
  std::string missing;            ///< why there is none
};

[[nodiscard]] FabricProbe probe_fabric();

struct DoctorReport {
  NvmlProbe gpus;
  NvlinkFabric nvlink_fabric;
  std::vector<NicPort> nics;
  FabricProbe fabric;
  std::string nccl_version;  ///< of the library that is found at run time; empty = none
  PythonVersions python;
  std::vector<BackendProof> own;
  std::vector<BackendProof> packages;
  MemoryQuestion question;
  std::vector<MemoryNeed> memory;
};

[[nodiscard]] Json doctor_json(const DoctorReport& report);
[[nodiscard]] std::string render_doctor(const DoctorReport& report);

}  // namespace epistle::cli
