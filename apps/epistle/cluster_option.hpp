// The value of an option that names a cluster.
#pragma once

#include <string>

#include "topology/cluster.hpp"

namespace epistle::cli {

/// A preset by name, or a file: what has a folder or an ending in its name. Throws as find_cluster and read_cluster do.
[[nodiscard]] inline Cluster cluster_of_option(const std::string& name) {
  const bool is_file = name.find('/') != std::string::npos || name.ends_with(".json");
  return is_file ? read_cluster(name) : find_cluster(name);
}

}  // namespace epistle::cli
