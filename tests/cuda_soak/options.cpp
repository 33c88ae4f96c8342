#include "cuda_soak/options.hpp"

#include <charconv>
#include <cstddef>
#include <limits>
#include <system_error>

#include <fmt/format.h>

#include "epistle/dispatcher_info.hpp"
#include "epistle/error.hpp"

namespace epistle::testing {
namespace {

std::optional<std::int64_t> parse_number(std::string_view text) {
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number < 1) return std::nullopt;
  return number;
}

bool is_dispatcher(std::string_view name) {
  try {
    return find_dispatcher(name, Device::kCuda).name() == name;
  } catch (const Error&) {
    return false;
  }
}

/// False where there is no such option.
bool set_number(SoakOptions& options, std::string_view name, std::int64_t number) {
  if (name == "--ranks" && number <= std::numeric_limits<int>::max()) {
    options.num_ranks = static_cast<int>(number);
  } else if (name == "--round-trips") {
    options.num_round_trips = number;
  } else if (name == "--replays") {
    options.num_replays = number;
  } else if (name == "--seed") {
    options.seed = static_cast<std::uint64_t>(number);
  } else if (name == "--first") {
    options.first_dispatcher = number;
  } else {
    return false;
  }
  return true;
}

}  // namespace

std::string_view soak_usage() noexcept {
  return "usage: cuda_soak --round-trips N [--first D] [OPTION...]   round trips of random shape\n"
         "       cuda_soak --replays N [OPTION...]                   graphs of decode steps, checked on the GPU\n"
         "\n"
         "  --ranks R                  2 unless given\n"
         "  --virtual | --processes    all ranks on one GPU, or as processes; otherwise threads with a GPU each\n"
         "  --dispatcher NAME          direct unless given\n"
         "  --seed S                   1 unless given\n"
         "  --first D                  starts at the D-th dispatcher of the seed\n";
}

std::optional<SoakOptions> parse_soak_options(const std::vector<std::string_view>& arguments) {
  SoakOptions options;
  bool for_round_trips = false;
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
    if (++idx == arguments.size()) return std::nullopt;
    if (name == "--dispatcher") {
      options.dispatcher = arguments[idx];
      continue;
    }
    const auto number = parse_number(arguments[idx]);
    if (!number || !set_number(options, name, *number)) return std::nullopt;
    for_round_trips = for_round_trips || name == "--round-trips" || name == "--first";
  }
  if (options.virtual_ranks && options.processes) return std::nullopt;
  if (options.replays() && for_round_trips) return std::nullopt;
  if (!is_dispatcher(options.dispatcher)) return std::nullopt;
  return options;
}

std::string to_text(const SoakOptions& options) {
  const std::string_view kind = options.processes       ? "processes"
                                : options.virtual_ranks ? "virtual ranks on one GPU"
                                                        : "threads";
  return fmt::format(
      "{} {} of {} at {} ranks ({}), seed {}", options.replays() ? options.num_replays : options.num_round_trips,
      options.replays() ? "replays" : "round trips", options.dispatcher, options.num_ranks, kind, options.seed);
}

}  // namespace epistle::testing
