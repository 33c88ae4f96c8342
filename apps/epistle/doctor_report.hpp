// What epistle doctor prints.
#pragma once

#include <string>
#include <vector>

#include "doctor_own.hpp"
#include "doctor_packages.hpp"
#include "doctor_types.hpp"
#include "json_text.hpp"
#include "topology/nic.hpp"
#include "topology/nvml.hpp"

namespace epistle::cli {

struct DoctorReport {
  NvmlProbe gpus;
  std::vector<NicPort> nics;
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
