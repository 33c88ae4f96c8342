#include "bench_ranks.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "exit_codes.hpp"
#include "output.hpp"

namespace epistle::cli {
namespace {

constexpr std::size_t kMessageBytes = 2048;
constexpr std::size_t kValueBytes = 256;
constexpr std::size_t kMaxOptions = 32;

/// What a rank tells the others before the run.
struct RankStatus {
  ErrorCode code = ErrorCode::kOk;
  std::array<char, kMessageBytes> message{};
  std::array<std::array<char, kValueBytes>, kMaxOptions> values{};  ///< of the shared options; longer ones are cut
};

template <std::size_t kSize>
void store(std::array<char, kSize>& target, std::string_view text) {
  const std::size_t length = std::min(text.size(), kSize - 1);
  std::memcpy(target.data(), text.data(), length);
  target[length] = '\0';
}

/// One failure for all ranks.
struct AgreedFailure {
  ErrorCode code = ErrorCode::kOk;
  std::string message;
};

std::optional<AgreedFailure> find_failure(const std::vector<RankStatus>& all) {
  const auto failed = [](const RankStatus& status) { return status.code != ErrorCode::kOk; };
  const auto first = std::find_if(all.begin(), all.end(), failed);
  if (first == all.end()) return std::nullopt;
  const bool alike =
      std::all_of(all.begin(), all.end(), [&](const RankStatus& status) { return status.message == first->message; });
  const std::string text = first->message.data();
  return AgreedFailure{first->code, alike ? text : fmt::format("rank {}: {}", first - all.begin(), text)};
}

std::optional<AgreedFailure> find_different_option(const std::vector<RankStatus>& all, const BenchOptions& options) {
  const auto names = shared_options(options);
  for (std::size_t rank = 1; rank < all.size(); ++rank) {
    for (std::size_t idx = 0; idx < names.size(); ++idx) {
      if (all[rank].values[idx] == all[0].values[idx]) continue;
      return AgreedFailure{
          ErrorCode::kShapeMismatch,
          fmt::format("{} is '{}' on rank 0 and '{}' on rank {}; start all ranks with the same options",
                      names[idx].first, all[0].values[idx].data(), all[rank].values[idx].data(), rank)};
    }
  }
  return std::nullopt;
}

/// Collective. Tells and asks how it went everywhere; the same answer on all ranks.
std::optional<AgreedFailure> agree(Group& group, const BenchOptions& options, const std::optional<Error>& error) {
  RankStatus own;
  if (error) {
    own.code = error->code();
    store(own.message, error->what());
  }
  const auto values = shared_options(options);
  for (std::size_t idx = 0; idx < values.size(); ++idx) store(own.values[idx], values[idx].second);
  std::vector<RankStatus> all(static_cast<std::size_t>(group.size()));
  group.all_gather(&own, sizeof(own), all.data());
  const auto different = find_different_option(all, options);
  return different ? different : find_failure(all);
}

void check_num_ranks(const BenchOptions& options, const LaunchInfo& info) {
  if (options.num_ranks == 0 || options.num_ranks == info.num_ranks) return;
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("--ranks is {}, but {} started {} rank{}; leave --ranks out, make them equal, or use --group "
                          "threads",
                          options.num_ranks, info.launcher, info.num_ranks, info.num_ranks == 1 ? "" : "s"));
}

}  // namespace

bool speaks_for_all(const Error& error, int rank) noexcept {
  switch (error.code()) {
    case ErrorCode::kPeerLost:
    case ErrorCode::kTimeout:
      // The one that is lost may be unable to say so.
      return rank == (error.context().peer_rank == 0 ? 1 : 0);
    case ErrorCode::kOutOfMemory:
    case ErrorCode::kSystem:
    case ErrorCode::kUnsupported:
      // May have happened here only: the others then know no reason.
      return true;
    default:
      // All ranks throw the same, or the others throw kPeerRejected with this rank's reason.
      return rank == 0;
  }
}

int run_launched_rank(const BenchOptions& options,
                      const std::function<int(Group& group, const BenchPlan& plan)>& body) {
  const LaunchInfo info = read_launch_info();
  Group group = join_process_group(info);
  try {
    std::optional<BenchPlan> plan;
    std::optional<Error> error;
    try {
      check_num_ranks(options, info);
      if (group.rank() == 0 && !options.json_target.empty()) check_output(options.json_target);
      plan = make_bench_plan(options, group.size(), GroupKind::kProcesses);
    } catch (const Error& e) {
      error = e;
    }
    if (const auto failure = agree(group, options, error)) {
      if (group.rank() == 0) print_error(failure->message);
      return exit_code_for(failure->code);
    }
    add_expectation(options, *plan);
    return body(group, *plan);
  } catch (const Error& error) {
    if (speaks_for_all(error, group.rank())) throw;
    return exit_code_for(error.code());
  }
}

}  // namespace epistle::cli
