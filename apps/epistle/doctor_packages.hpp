// What the Python packages of other dispatchers prove of themselves.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "doctor_types.hpp"

namespace epistle::cli {

/// The versions that matter to all of them; empty where the interpreter does not tell.
struct PythonVersions {
  std::string python;
  std::string torch;
  std::string torch_cuda;
  std::string torch_nccl;
  std::string missing;  ///< why nothing is known
};

[[nodiscard]] PythonVersions probe_python(const std::string& python, std::chrono::milliseconds limit);

/// Every package in processes of its own, two ranks; without `python` none is tried. `wanted` names some of them; empty
/// = all. Throws kInvalidArgument for a name that is none.
[[nodiscard]] std::vector<BackendProof> probe_packages(const std::vector<std::string>& wanted,
                                                       const std::string& python, std::chrono::milliseconds limit);

}  // namespace epistle::cli
