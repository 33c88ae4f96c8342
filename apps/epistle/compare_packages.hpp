// Packages of others in a comparison: they run in processes of their own, in two blocks, before and after the
// dispatchers of this library, by the same routing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench_options.hpp"
#include "bench_plan.hpp"
#include "json_text.hpp"
#include "package_probe.hpp"
#include "report/progress.hpp"

namespace epistle::cli {

struct PackageOptions {
  std::vector<std::string> names;  ///< as --dispatcher has them
  std::string python;              ///< empty = none was given
  std::int64_t limit_s = 300;      ///< of a block
};

/// Moves the names of packages from the dispatchers of `bench` to `packages`. Throws kInvalidArgument for one that is
/// named twice.
void take_package_names(BenchOptions& bench, PackageOptions& packages);

class PackageBlocks {
 public:
  /// Keeps references to both.
  PackageBlocks(const PackageOptions& options, const BenchPlan& plan);

  /// One block of all packages that have not failed.
  void run(Progress& progress);

  /// Adds what was measured, and what is unavailable, to the document of a run.
  void add_to(Json& document) const;

 private:
  struct Package {
    std::string name;
    std::string unavailable;  ///< why there are no times; empty = there are
    ProbeResult last;
    PackageTimes times;  ///< of all blocks
  };

  const PackageOptions& options_;
  const BenchPlan& plan_;
  std::vector<Package> packages_;
};

}  // namespace epistle::cli
