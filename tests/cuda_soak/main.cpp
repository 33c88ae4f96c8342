// cuda_soak --ranks N --round-trips M [--virtual | --processes] [--seed S] [--first D]
//
// Ends with 0 when every bit was right and as much device memory is free as before, 1 when not, 2 for bad arguments,
// and 77 where there are not enough GPUs.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "epistle/error.hpp"
#include "epistle/group.hpp"

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
constexpr std::int64_t kProgressTrips = 500;
constexpr std::chrono::milliseconds kTimeout{30'000};

void print_line(const std::string& line) {
  std::puts(line.c_str());
  std::fflush(stdout);
}

std::optional<std::int64_t> parse_number(std::string_view text) {
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number < 1) return std::nullopt;
  return number;
}

std::optional<SoakOptions> parse_options(const std::vector<std::string_view>& arguments) {
  SoakOptions options;
  for (std::size_t idx = 0; idx < arguments.size(); ++idx) {
    const std::string_view name = arguments[idx];
    if (name == "--virtual") {
      options.virtual_ranks = true;
      continue;
    }
    if (name == "--processes") {
      options.processes = true;
      continue;
    }
    const auto number = idx + 1 < arguments.size() ? parse_number(arguments[++idx]) : std::nullopt;
    if (!number) return std::nullopt;
    if (name == "--ranks") {
      options.num_ranks = static_cast<int>(*number);
    } else if (name == "--round-trips") {
      options.num_round_trips = *number;
    } else if (name == "--seed") {
      options.seed = static_cast<std::uint64_t>(*number);
    } else if (name == "--first") {
      options.first_dispatcher = *number;
    } else {
      return std::nullopt;
    }
  }
  if (options.virtual_ranks && options.processes) return std::nullopt;
  return options;
}

std::string kind_of(const SoakOptions& options) {
  return options.processes ? "processes" : options.virtual_ranks ? "virtual ranks on one GPU" : "threads";
}

/// Plays one rank and tells rank 0's progress. True when it went well.
bool play(Group& group, const SoakOptions& options, SoakResult& result) {
  const auto begin = Clock::now();
  std::int64_t next = kProgressTrips;
  result = epistle::testing::soak_rank(group, options, [&](std::int64_t num_done) {
    if (num_done < next) return;
    next = num_done + kProgressTrips;
    const std::chrono::duration<double> elapsed = Clock::now() - begin;
    print_line(
        fmt::format("cuda_soak: {} of {} round trips, {:.1f} s", num_done, options.num_round_trips, elapsed.count()));
  });
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
  print_line(fmt::format("cuda_soak: {} dispatchers; free device memory of rank 0: {} bytes before, {} bytes after",
                         results[0].num_dispatchers, results[0].free_before_bytes, results[0].free_after_bytes));
  return std::all_of(ok.begin(), ok.end(), [](char rank_ok) { return rank_ok != 0; });
}

bool soak_processes(const SoakOptions& options) {
  const auto exits = epistle::testing::run_process_ranks(
      options.num_ranks,
      [&](Group& group) {
        SoakResult result;
        const bool ok = play(group, options, result);
        print_line(fmt::format("cuda_soak: rank {}: free device memory: {} bytes before, {} bytes after", group.rank(),
                               result.free_before_bytes, result.free_after_bytes));
        return ok ? 0 : kFailedExit;
      },
      {.timeout = kTimeout});
  return std::all_of(exits.begin(), exits.end(), [](int code) { return code == 0; });
}

}  // namespace

int main(int argc, char** argv) {
  const auto options = parse_options({argv + 1, argv + argc});
  if (!options) {
    std::fputs("usage: cuda_soak --ranks N --round-trips M [--virtual | --processes] [--seed S] [--first D]\n", stderr);
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
  print_line(fmt::format("cuda_soak: {}: {} round trips at {} ranks ({}), seed {}, {:.1f} s", ok ? "passed" : "FAILED",
                         options->num_round_trips, options->num_ranks, kind_of(*options), options->seed,
                         elapsed.count()));
  return ok ? 0 : kFailedExit;
}
