// One round of a scenario: the routing of all ranks and everything that they put in, made from the seed.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "epistle/routing.hpp"

#include "dispatch/call/resolved_config.hpp"
#include "dispatch/reference/oracle.hpp"
#include "support/scenario.hpp"

namespace epistle::testing {

/// Values that sums must carry through: infinities, NaN, subnormals, the largest and the smallest.
inline float odd_value(std::uint64_t bits) {
  static constexpr float kValues[] = {INFINITY, -INFINITY, NAN, 1e-40F, -1e-40F, 3e38F, -0.0F, 6e-8F};
  return kValues[bits % 8];
}

class Round {
 public:
  /// Tells apart the rows that are summed.
  using ValueStream = std::uint64_t;

  Round(const Scenario& scenario, int round);

  [[nodiscard]] const Scenario& scenario() const { return scenario_; }
  [[nodiscard]] const ResolvedConfig& config() const { return config_; }
  [[nodiscard]] int num_ranks() const { return scenario_.num_ranks(); }

  /// In force in this round.
  [[nodiscard]] const Placement& placement() const { return placement_; }
  [[nodiscard]] std::uint64_t step_seed() const { return key_ >> 7; }

  /// What a rank's router says.
  [[nodiscard]] const RoutingTable& table(int rank) const { return tables_[static_cast<std::size_t>(rank)]; }
  /// Tokens of a rank that take part; all of them where the scenario does not count.
  [[nodiscard]] std::int64_t counted_tokens(int rank) const {
    const std::int64_t all = table(rank).num_tokens;
    return scenario_.counted < 0.0 ? all : static_cast<std::int64_t>(scenario_.counted * static_cast<double>(all));
  }
  /// The tables of all ranks, those tokens without experts that do not take part.
  [[nodiscard]] std::vector<RoutingTable> effective_tables() const;

  /// Random bytes, as any payload is just carried; where it is quantised most are values of a usual size.
  [[nodiscard]] std::vector<std::byte> payload(int rank) const;
  [[nodiscard]] std::vector<std::byte> scales(int rank) const {
    return random_bytes(2, rank, table(rank).num_tokens * scale_row_bytes());
  }
  /// Of all ranks.
  [[nodiscard]] std::vector<std::vector<std::byte>> payloads() const;
  [[nodiscard]] std::vector<std::vector<std::byte>> all_scales() const;

  /// The same as they are to be received: quantised where the wire does so.
  struct Received {
    std::int64_t row_bytes = 0;
    std::int64_t scale_row_bytes = 0;
    std::vector<std::vector<std::byte>> rows;    ///< of all ranks
    std::vector<std::vector<std::byte>> scales;  ///< row by row
  };
  [[nodiscard]] Received received() const;

  /// Of what is given to dispatch.
  [[nodiscard]] std::int64_t row_bytes() const { return config_.hidden * dtype_bytes(config_.dtype); }
  [[nodiscard]] std::int64_t scale_row_bytes() const {
    return config_.dtype == DType::kFp8E4m3 ? (config_.hidden + 127) / 128 * 4 : config_.raw_scale_bytes;
  }
  [[nodiscard]] std::int64_t output_row_bytes() const {
    return config_.combine_hidden * dtype_bytes(config_.combine_dtype);
  }
  /// Whether anything can be combined at all.
  [[nodiscard]] bool combines() const { return config_.combine_hidden > 0; }

  /// Rows of values to sum.
  [[nodiscard]] std::vector<std::byte> values(ValueStream stream, int rank, std::int64_t num_rows) const;
  /// The same as floats.
  [[nodiscard]] std::vector<float> row_values(ValueStream stream, int rank, std::int64_t row) const;

 private:
  [[nodiscard]] RoutingTable make_table(int rank) const;
  [[nodiscard]] std::vector<std::byte> random_bytes(std::uint64_t stream, int rank, std::int64_t num_bytes) const;
  void write_row(ValueStream stream, int rank, std::int64_t row, std::byte* target) const;

  Scenario scenario_;
  std::uint64_t key_;
  ResolvedConfig config_;
  Placement placement_;
  std::vector<RoutingTable> tables_;
};

}  // namespace epistle::testing
