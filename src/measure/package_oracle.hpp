// What a package of others must give where experts give back what they get: its rows, and its sums.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "epistle/routing.hpp"

namespace epistle {

/// How a package counts and sums.
struct PackageSemantics {
  bool per_expert = false;  ///< a row arrives once for every expert of the rank, not once for the rank
  bool weighted = false;    ///< combine multiplies by the routing weights; otherwise rows of all ranks are summed
};

/// Rows of bf16 that hold small whole numbers, so that sums of them are exact: any rank can name any rank's rows.
[[nodiscard]] std::vector<std::uint16_t> package_rows(std::uint64_t seed, int rank, std::int64_t num_tokens,
                                                      std::int64_t hidden);

struct PackageRun {
  std::span<const RoutingTable> tables;  ///< all ranks'
  std::uint64_t seed = 1;
  std::int64_t hidden = 0;
  PackageSemantics semantics;
};

/// Whether `received` are the rows that belong to `rank`, bit by bit, in any order. Empty, or what is wrong.
[[nodiscard]] std::string check_package_rows(const PackageRun& run, int rank, std::span<const std::uint16_t> received);

/// Whether `sums` are what combine must give `rank`, within 8 units of the last place of bf16. Empty, or what is wrong.
[[nodiscard]] std::string check_package_sums(const PackageRun& run, int rank, std::span<const std::uint16_t> sums);

}  // namespace epistle
