// A Python package of another dispatcher, run in processes of its own: what it reaches, its times, and its outputs
// compared with what they must be. Nothing that it does can do more than fail here.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "epistle/routing.hpp"

#include "json_text.hpp"

namespace epistle::cli {

/// What a package is asked to do.
struct ProbeJob {
  std::string package;  ///< one that is_package() knows
  std::string python;   ///< the interpreter
  bool on_gpu = true;
  std::int64_t hidden = 0;
  std::uint64_t seed = 1;
  std::span<const RoutingTable> tables;  ///< one for each rank
  int warmups = 1;
  int rounds = 0;  ///< that are timed
  int pairs = 1;   ///< of a chain
  std::chrono::milliseconds limit{0};
};

/// Times of the slowest rank, one of each for every round.
struct PackageTimes {
  std::vector<double> period_us = {};
  std::vector<double> dispatch_us = {};
  std::vector<double> combine_us = {};
};

/// A level that is not set was not reached or not tried; `reason` says why.
struct ProbeResult {
  std::optional<bool> imported = {};
  std::optional<bool> initialised = {};
  std::optional<bool> steady = {};  ///< iterations ran, and every output was right
  std::string reason = {};          ///< empty where all levels were shown
  std::string version = {};
  std::string routing_hash = {};                  ///< as the package's own process computed it
  Json stack = Json::object();                    ///< versions of what it ran on
  std::vector<std::string> kernels;               ///< that a pair ran on a GPU
  std::optional<std::int64_t> device_bytes = {};  ///< of all ranks
  PackageTimes times = {};
};

/// Whether the probe knows how to call it: "deepep", "ncclep", ...
[[nodiscard]] bool is_package(std::string_view name) noexcept;

/// Throws kSystem where no process can be started or no file written.
[[nodiscard]] ProbeResult run_probe(const ProbeJob& job);

}  // namespace epistle::cli
