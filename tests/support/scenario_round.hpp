// One round of a scenario: the routing of all ranks and everything that they put in, made from the seed.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "epistle/routing.hpp"

#include "dispatch/call/resolved_config.hpp"
#include "dispatch/reference/oracle.hpp"
#include "dispatch/reference/quantise.hpp"
#include "support/scenario.hpp"

namespace epistle::testing {

/// Values that sums must carry through: infinities, NaN, subnormals, the largest and the smallest.
inline float odd_value(std::uint64_t bits) {
  constexpr float kValues[] = {INFINITY, -INFINITY, NAN, 1e-40F, -1e-40F, 3e38F, -0.0F, 6e-8F};
  return kValues[bits % 8];
}

class Round {
 public:
  /// Tells apart the rows that are summed.
  using ValueStream = std::uint64_t;

  Round(const Scenario& scenario, int round)
      : scenario_(scenario),
        key_(mix(scenario.seed, static_cast<std::uint64_t>(round))),
        config_(resolve_config(scenario.config, scenario.num_ranks())) {
    for (int rank = 0; rank < num_ranks(); ++rank) tables_.push_back(make_table(rank));
  }

  [[nodiscard]] const Scenario& scenario() const { return scenario_; }
  [[nodiscard]] const ResolvedConfig& config() const { return config_; }
  [[nodiscard]] int num_ranks() const { return scenario_.num_ranks(); }

  /// What a rank's router says.
  [[nodiscard]] const RoutingTable& table(int rank) const { return tables_[static_cast<std::size_t>(rank)]; }
  /// Tokens of a rank that take part; all of them where the scenario does not count.
  [[nodiscard]] std::int64_t counted_tokens(int rank) const {
    const std::int64_t all = table(rank).num_tokens;
    return scenario_.counted < 0.0 ? all : static_cast<std::int64_t>(scenario_.counted * static_cast<double>(all));
  }
  /// The tables of all ranks, those tokens without experts that do not take part.
  [[nodiscard]] std::vector<RoutingTable> effective_tables() const {
    std::vector<RoutingTable> tables = tables_;
    for (int rank = 0; rank < num_ranks(); ++rank) {
      auto& ids = tables[static_cast<std::size_t>(rank)].expert_ids;
      for (auto entry = static_cast<std::size_t>(counted_tokens(rank) * config_.top_k); entry < ids.size(); ++entry) {
        ids[entry] = kNoExpert;
      }
    }
    return tables;
  }

  /// Random bytes, as any payload is just carried; where it is quantised most are values of a usual size.
  [[nodiscard]] std::vector<std::byte> payload(int rank) const {
    std::vector<std::byte> bytes = random_bytes(1, rank, table(rank).num_tokens * row_bytes());
    if (config_.quantises) tame(bytes);
    return bytes;
  }
  [[nodiscard]] std::vector<std::byte> scales(int rank) const {
    return random_bytes(2, rank, table(rank).num_tokens * scale_row_bytes());
  }
  /// Of all ranks.
  [[nodiscard]] std::vector<std::vector<std::byte>> payloads() const {
    std::vector<std::vector<std::byte>> all;
    for (int rank = 0; rank < num_ranks(); ++rank) all.push_back(payload(rank));
    return all;
  }
  [[nodiscard]] std::vector<std::vector<std::byte>> all_scales() const {
    std::vector<std::vector<std::byte>> all;
    for (int rank = 0; rank < num_ranks(); ++rank) all.push_back(scales(rank));
    return all;
  }

  /// The same as they are to be received: quantised where the wire does so.
  struct Received {
    std::int64_t row_bytes = 0;
    std::int64_t scale_row_bytes = 0;
    std::vector<std::vector<std::byte>> rows;    ///< of all ranks
    std::vector<std::vector<std::byte>> scales;  ///< row by row
  };
  [[nodiscard]] Received received() const {
    if (!config_.quantises) return {row_bytes(), scale_row_bytes(), payloads(), all_scales()};
    // Four bytes for every 128 elements, or one, filled up to words.
    const std::int64_t num_scales = (config_.hidden + 127) / 128;
    const bool is_fp32 = config_.quantised.scales == ScaleFormat::kFp32;
    Received all{config_.hidden, is_fp32 ? num_scales * 4 : (num_scales + 3) / 4 * 4, {}, {}};
    for (int rank = 0; rank < num_ranks(); ++rank) {
      const std::vector<std::byte> given = payload(rank);
      const std::int64_t num_tokens = table(rank).num_tokens;
      all.rows.emplace_back(static_cast<std::size_t>(num_tokens * all.row_bytes));
      all.scales.emplace_back(static_cast<std::size_t>(num_tokens * all.scale_row_bytes));
      for (std::int64_t token = 0; token < num_tokens; ++token) {
        reference::quantise_row(config_, given.data() + token * row_bytes(),
                                all.rows.back().data() + token * all.row_bytes,
                                all.scales.back().data() + token * all.scale_row_bytes);
      }
    }
    return all;
  }

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
  [[nodiscard]] std::vector<std::byte> values(ValueStream stream, int rank, std::int64_t num_rows) const {
    std::vector<std::byte> bytes(static_cast<std::size_t>(num_rows * output_row_bytes()));
    for (std::int64_t row = 0; row < num_rows; ++row) {
      write_row(stream, rank, row, bytes.data() + row * output_row_bytes());
    }
    return bytes;
  }
  /// The same as floats.
  [[nodiscard]] std::vector<float> row_values(ValueStream stream, int rank, std::int64_t row) const {
    std::vector<std::byte> bytes(static_cast<std::size_t>(output_row_bytes()));
    write_row(stream, rank, row, bytes.data());
    std::vector<float> result;
    for (std::int64_t idx = 0; idx < config_.combine_hidden; ++idx) {
      result.push_back(reference::read_element(config_.combine_dtype, bytes.data(), idx));
    }
    return result;
  }

 private:
  [[nodiscard]] RoutingTable make_table(int rank) const {
    RoutingTable table;
    table.num_tokens = scenario_.tokens_per_rank[static_cast<std::size_t>(rank)];
    table.num_experts = config_.num_experts;
    table.top_k = config_.top_k;
    std::vector<std::int32_t> order(static_cast<std::size_t>(config_.num_experts));
    std::uint64_t draw = mix(key_, 1000 + static_cast<std::uint64_t>(rank));
    const auto next = [&draw] { return draw = mix(draw, 7); };
    for (std::int64_t token = 0; token < table.num_tokens; ++token) {
      for (std::size_t idx = 0; idx < order.size(); ++idx) order[idx] = static_cast<std::int32_t>(idx);
      for (std::size_t position = 0; position < static_cast<std::size_t>(config_.top_k); ++position) {
        const std::size_t left = order.size() - position;
        const double share = scenario_.hot_experts ? unit(next()) * unit(next()) * unit(next()) : unit(next());
        std::swap(order[position], order[position + static_cast<std::size_t>(share * static_cast<double>(left))]);
        const bool missing = unit(next()) < scenario_.missing_probability;
        table.expert_ids.push_back(missing ? kNoExpert : order[position]);
        const bool odd = scenario_.odd_values && next() % 16 == 0;
        table.weights.push_back(odd ? odd_value(next()) : static_cast<float>(unit(next())));
      }
    }
    return table;
  }

  [[nodiscard]] std::vector<std::byte> random_bytes(std::uint64_t stream, int rank, std::int64_t num_bytes) const {
    std::vector<std::byte> bytes(static_cast<std::size_t>(num_bytes));
    const std::uint64_t key = mix(key_, stream * 100 + static_cast<std::uint64_t>(rank));
    for (std::size_t idx = 0; idx < bytes.size(); ++idx) bytes[idx] = static_cast<std::byte>(mix(key, idx));
    return bytes;
  }

  /// Random bf16 have magnitudes from nothing to infinity, so that little is left of a block but its largest. Most
  /// pieces get magnitudes of 2^-7 to 2^8, some are zeros of either sign, and the others stay.
  static void tame(std::vector<std::byte>& values) {
    constexpr std::size_t kPieceBytes = 96;  // not those of a scale, so that some of these have two kinds
    for (std::size_t idx = 0; idx + 1 < values.size(); idx += 2) {
      const std::size_t kind = idx / kPieceBytes % 8;
      std::byte& upper = values[idx + 1];
      const std::byte sign = upper & std::byte{0x80};
      if (kind == 0) continue;
      if (kind <= 2) {
        upper = sign;
        values[idx] = std::byte{0};
      } else {
        upper = sign | static_cast<std::byte>(0x3c + (std::to_integer<int>(upper) & 7));
      }
    }
  }

  void write_row(ValueStream stream, int rank, std::int64_t row, std::byte* target) const {
    const std::uint64_t key =
        mix(mix(key_, stream * 100 + static_cast<std::uint64_t>(rank)), static_cast<std::uint64_t>(row));
    for (std::int64_t idx = 0; idx < config_.combine_hidden; ++idx) {
      const std::uint64_t bits = mix(key, static_cast<std::uint64_t>(idx));
      const bool odd = scenario_.odd_values && bits % 32 == 0;
      const float value = odd ? odd_value(bits >> 8) : static_cast<float>(unit(bits) * 4.0 - 2.0);
      reference::write_element(config_.combine_dtype, target, idx, value);
    }
  }

  Scenario scenario_;
  std::uint64_t key_;
  ResolvedConfig config_;
  std::vector<RoutingTable> tables_;
};

}  // namespace epistle::testing
