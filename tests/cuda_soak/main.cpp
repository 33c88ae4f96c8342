// cuda_soak: soak_usage() says its options. Ends with 0 when every bit was right and as much device memory is free as
// before, 1 when not, 2 for bad arguments, and 77 where there are not enough GPUs.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "epistle/error.hpp"
#include "epistle/group.hpp"

#include "cuda_soak/options.hpp"
#include "cuda_soak/replays.hpp"
#include "cuda_soak/soak.hpp"
#include "support/cuda_devices.hpp"
#include "support/process_ranks.hpp"

namespace {

using epistle::Group;
using epistle::testing::SoakOptions;
using epistle::testing::SoakResult;
using Clock = std::chrono::steady_clock;

constexpr int kFailedExit = 1;
constexpr int kUsageExit = 2;
constexpr int kSkippedExit = 77;
constexpr std::chrono::seconds kProgressInterval{2};
constexpr std::chrono::milliseconds kTimeout{30'000};

void print_line(const std::string& line) {
  std::puts(line.c_str());
  std::fflush(stdout);
}

void print_memory(int rank, const SoakResult& result) {
  print_line(fmt::format("cuda_soak: rank {}: {}; free device memory: {} bytes before, {} bytes after", rank,
                         result.subject, result.free_before_bytes, result.free_after_bytes));
}

/// Plays one rank and tells rank 0's progress. True when it went well.
bool play(Group& group, const SoakOptions& options, SoakResult& result) {
  const auto begin = Clock::now();
  auto told = begin;
  const auto tell = [&](std::int64_t num_done) {
    const auto now = Clock::now();
    if (now - told < kProgressInterval) return;
    told = now;
    const std::chrono::duration<double> elapsed = now - begin;
    print_line(fmt::format("cuda_soak: {} done, {:.1f} s", num_done, elapsed.count()));
  };
  result = options.replays() ? epistle::testing::soak_replays(group, options, tell)
                             : epistle::testing::soak_rank(group, options, tell);
  if (result.free_before_bytes == result.free_after_bytes) return true;
  print_line(fmt::format("cuda_soak: rank {}: device memory free before {} bytes, after {} bytes: {} are lost",
                         group.rank(), result.free_before_bytes, result.free_after_bytes,
                         result.free_before_bytes - result.free_after_bytes));
  return false;
}

bool soak_threads(const SoakOptions& options) {
  std::vector<SoakResult> results(static_cast<std::size_t>(options.num_ranks));
  std::vector<char> ok(results.size(), 0);
  try {
    epistle::run_thread_ranks(options.num_ranks,
                              [&](Group& group) {
                                const auto rank = static_cast<std::size_t>(group.rank());
                                ok[rank] = play(group, options, results[rank]) ? 1 : 0;
                              },
                              {.timeout = kTimeout});
  } catch (const std::exception& error) {
    print_line(fmt::format("cuda_soak: {}", error.what()));
    return false;
  }
  print_memory(0, results[0]);
  return std::all_of(ok.begin(), ok.end(), [](char rank_ok) { return rank_ok != 0; });
}

bool soak_processes(const SoakOptions& options) {
  const auto exits = epistle::testing::run_process_ranks(options.num_ranks,
                                                         [&](Group& group) {
                                                           SoakResult result;
                                                           const bool ok = play(group, options, result);
                                                           print_memory(group.rank(), result);
                                                           return ok ? 0 : kFailedExit;
                                                         },
                                                         {.timeout = kTimeout});
  return std::all_of(exits.begin(), exits.end(), [](int code) { return code == 0; });
}

}  // namespace

int main(int argc, char** argv) {
  const auto options = epistle::testing::parse_soak_options({argv + 1, argv + argc});
  if (!options) {
    std::fputs(epistle::testing::soak_usage().data(), stderr);
    return kUsageExit;
  }
  const int num_gpus = options->virtual_ranks ? 1 : options->num_ranks;
  // The process that forks must not start CUDA.
  const std::string missing =
      options->processes ? epistle::testing::missing_gpu_nodes(num_gpus) : epistle::testing::missing_gpus(num_gpus);
  if (!missing.empty()) {
    print_line("cuda_soak: skipped: " + missing);
    return kSkippedExit;
  }
  const auto begin = Clock::now();
  const bool ok = options->processes ? soak_processes(*options) : soak_threads(*options);
  const std::chrono::duration<double> elapsed = Clock::now() - begin;
  print_line(fmt::format("cuda_soak: {}: {}, {:.1f} s", ok ? "passed" : "FAILED", epistle::testing::to_text(*options),
                         elapsed.count()));
  return ok ? 0 : kFailedExit;
}
