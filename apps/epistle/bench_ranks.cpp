#include "bench_ranks.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
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
constexpr std::size_t kMaxOptions = 42;
constexpr std::uint64_t kHashFactor = 31;

/// What a rank tells the others before the run: enough to see whether all is well.
struct RankSummary {
  ErrorCode code = ErrorCode::kOk;
  std::uint64_t options_hash = 0;
};

/// And where it is not, what is wrong.
struct RankDetails {
  std::array<char, kMessageBytes> message{};
  std::array<std::array<char, kValueBytes>, kMaxOptions> values{};  ///< of the shared options
};

template <std::size_t kSize>
void store(std::array<char, kSize>& target, std::string_view text) {
  const std::size_t length = std::min(text.size(), kSize - 1);
  std::memcpy(target.data(), text.data(), length);
  target[length] = '\0';
}

/// A value that does not fit is cut, and its end replaced by a number that tells it from others.
std::string fitted(const std::string& value) {
  if (value.size() < kValueBytes) return value;
  const std::string mark = fmt::format("... ({:016x})", std::hash<std::string>{}(value));
  return value.substr(0, kValueBytes - 1 - mark.size()) + mark;
}

template <typename Value>
std::vector<Value> gather(Group& group, const Value& own) {
  std::vector<Value> all(static_cast<std::size_t>(group.size()));
  group.all_gather(&own, sizeof(own), all.data());
  return all;
}

/// The first option that is not the same everywhere, or nothing.
std::optional<Error> find_difference(const std::vector<RankDetails>& all, const BenchOptions& options) {
  const auto names = shared_options(options);
  for (std::size_t rank = 1; rank < all.size(); ++rank) {
    for (std::size_t idx = 0; idx < std::min(names.size(), kMaxOptions); ++idx) {
      if (all[rank].values[idx] == all[0].values[idx]) continue;
      return Error(ErrorCode::kShapeMismatch,
                   fmt::format("{} is '{}' on rank 0 and '{}' on rank {}; start all ranks with the same options",
                               names[idx].first, all[0].values[idx].data(), all[rank].values[idx].data(), rank));
    }
  }
  return std::nullopt;
}

Error first_failure(const std::vector<RankSummary>& summaries, const std::vector<RankDetails>& details) {
  std::size_t first = 0;
  while (summaries[first].code == ErrorCode::kOk) ++first;
  const std::string reason = details[first].message.data();
  const bool alike = std::all_of(details.begin(), details.end(),
                                 [&](const RankDetails& other) { return other.message == details[first].message; });
  return {summaries[first].code, alike ? reason : fmt::format("rank {}: {}", first, reason)};
}

/// Collective. What is wrong on some rank, the same on all ranks; nothing where all can go on.
std::optional<Error> agree(Group& group, const BenchOptions& options, const std::optional<Error>& error) {
  const auto values = shared_options(options);
  RankSummary summary{.code = error ? error->code() : ErrorCode::kOk, .options_hash = 0};
  for (const auto& [name, value] : values) {
    summary.options_hash = summary.options_hash * kHashFactor + std::hash<std::string>{}(value);
  }
  const std::vector<RankSummary> summaries = gather(group, summary);
  const bool all_well = std::all_of(summaries.begin(), summaries.end(), [&](const RankSummary& other) {
    return other.code == ErrorCode::kOk && other.options_hash == summary.options_hash;
  });
  // Ranks that differ see a difference at another rank, so all of them come to the same verdict.
  if (all_well) return std::nullopt;
  RankDetails own;
  if (error) store(own.message, reason_of(*error));
  for (std::size_t idx = 0; idx < std::min(values.size(), kMaxOptions); ++idx) {
    store(own.values[idx], fitted(values[idx].second));
  }
  const std::vector<RankDetails> details = gather(group, own);
  if (auto difference = find_difference(details, options)) return difference;
  return first_failure(summaries, details);
}

void check_num_ranks(const BenchOptions& options, const LaunchInfo& info) {
  if (options.num_ranks == 0 || options.num_ranks == info.num_ranks) return;
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("--ranks is {}, but {} started {} rank{}; leave --ranks out, make them equal, or use --group "
                          "threads",
                          options.num_ranks, info.launcher, info.num_ranks, info.num_ranks == 1 ? "" : "s"));
}

/// The others may set the mask before a rank that it names has woken from the step before.
bool was_left_out(const Error& error, const BenchOptions& options, int rank) {
  return error.code() == ErrorCode::kMaskedOut &&
         std::find(options.masked.begin(), options.masked.end(), rank) != options.masked.end();
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

int run_launched_rank(const LaunchInfo& info, const BenchOptions& options, const RankBody& body) {
  Group group = join_process_group(info, {.domain_size = options.domain_size});
  try {
    BenchPlan plan;
    std::optional<Error> error;
    try {
      check_num_ranks(options, info);
      if (group.rank() == 0) options.targets.check();
      BenchOptions found = options;
      // Of several hosts, what is found; and only what joins them runs by default.
      if (group.num_hosts() > 1) {
        found.domain_size = options.device == "cuda" ? group.gpu_domain_size() : group.domain_size();
        if (found.dispatchers.empty()) found.dispatchers = {"hybrid", "alltoall"};
      }
      plan = make_bench_plan(found, group.size(), GroupKind::kProcesses);
      require_device(plan);
    } catch (const Error& e) {
      error = e;
    }
    if (const auto failure = agree(group, options, error)) {
      if (group.rank() == 0) throw Error(*failure);
      return exit_code_for(failure->code());
    }
    add_expectation(options, plan);
    return body(group, plan);
  } catch (const Error& e) {
    if (was_left_out(e, options, group.rank())) return kExitOk;
    if (speaks_for_all(e, group.rank())) throw;
    return exit_code_for(e.code());
  }
}

}  // namespace epistle::cli
