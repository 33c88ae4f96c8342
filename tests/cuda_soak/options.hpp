// The options of cuda_soak.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace epistle::testing {

struct SoakOptions {
  int num_ranks = 2;
  std::int64_t num_round_trips = 1000;
  std::int64_t num_replays = 0;  ///< replays of decode steps take the place of round trips; 0: none
  std::string dispatcher = "direct";
  bool virtual_ranks = false;  ///< all ranks on GPU 0
  bool processes = false;      ///< one process per rank, each with a GPU of its own
  std::uint64_t seed = 1;
  std::int64_t first_dispatcher = 0;  ///< of round trips: where in the seed's sequence of dispatchers to start

  [[nodiscard]] bool replays() const noexcept { return num_replays > 0; }
};

/// For stderr, where the options are wrong.
[[nodiscard]] std::string_view soak_usage() noexcept;

/// Nothing where they are wrong.
[[nodiscard]] std::optional<SoakOptions> parse_soak_options(const std::vector<std::string_view>& arguments);

/// "200 round trips of direct at 4 ranks (threads), seed 1"
[[nodiscard]] std::string to_text(const SoakOptions& options);

}  // namespace epistle::testing
