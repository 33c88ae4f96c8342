// Compares what a dispatcher gave in a round with the oracle, bit for bit. Knows nothing of dispatchers: all it sees is
// host memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "measure/received_data.hpp"
#include "measure/verify.hpp"
#include "support/scenario_round.hpp"

namespace epistle::testing {

#define EPISTLE_RETURN_MISMATCH(expression)                \
  do {                                                     \
    if (Mismatch mismatch = (expression)) return mismatch; \
  } while (false)

template <typename A, typename B>
[[nodiscard]] Mismatch expect_equal(const A& actual, const B& expected, const std::string& what) {
  if (actual == expected) return std::nullopt;
  return fmt::format("{}: got {}, expected {}", what, actual, expected);
}

/// A weight's gradient that tells its place: exact in fp32.
[[nodiscard]] inline float marked_gradient(int rank, std::size_t idx) {
  return static_cast<float>(idx) + static_cast<float>(rank) * 4096.0F;
}

class Checker {
 public:
  explicit Checker(const Round& round) : round_(round), expectation_(round.config(), round.effective_tables()) {}

  [[nodiscard]] const Round& round() const { return round_; }
  [[nodiscard]] const Expectation& expectation() const { return expectation_; }
  [[nodiscard]] const RoutingTable& table(int rank) const { return expectation_.table(rank); }
  [[nodiscard]] const reference::RankLayout& layout(int rank) const { return expectation_.layout(rank); }

  /// The description of what `rank` received.
  [[nodiscard]] Mismatch check_description(int rank, const RowDescription& description) const {
    return expectation_.check_description(rank, description);
  }

  /// Received rows, of `row_bytes` each, and those of the sources; padding must be zero.
  [[nodiscard]] Mismatch check_rows(int rank, const std::byte* rows, std::int64_t row_bytes,
                                    const std::vector<std::vector<std::byte>>& sources, const std::string& what) const {
    const auto source_row = [&](int src_rank, std::int64_t src_token, std::byte* row) {
      std::memcpy(row, sources[static_cast<std::size_t>(src_rank)].data() + src_token * row_bytes,
                  static_cast<std::size_t>(row_bytes));
    };
    return expectation_.check_rows(
        rank, {.rows = rows, .row_bytes = row_bytes, .range = expectation_.all_rows(rank), .what = what}, source_row);
  }

  /// Rows and scales of a dispatch of the round's payload.
  [[nodiscard]] Mismatch check_received(int rank, const ReceivedData& received, const std::string& what) const {
    if (!received_) received_ = round_.received();
    const Round::Received& expected = *received_;
    EPISTLE_RETURN_MISMATCH(expect_equal(received.rows.row_bytes(), expected.row_bytes, what + ": bytes of a row"));
    EPISTLE_RETURN_MISMATCH(
        expect_equal(received.rows.num_rows, received.num_rows(), what + ": rows of the view, and as described"));
    EPISTLE_RETURN_MISMATCH(check_rows(rank, received.row_data(), expected.row_bytes, expected.rows, what));
    EPISTLE_RETURN_MISMATCH(
        expect_equal(received.scale_row_bytes(), expected.scale_row_bytes, what + ": bytes of a row's scales"));
    if (expected.scale_row_bytes == 0) return std::nullopt;
    EPISTLE_RETURN_MISMATCH(check_scales_view(received.scales, what));
    return check_rows(rank, received.scales_by_row().data(), expected.scale_row_bytes, expected.scales,
                      what + ", scales");
  }

  /// What combine of the rows of `stream` must give for all tokens of `rank`.
  [[nodiscard]] std::vector<std::byte> combined(Round::ValueStream stream, int rank, bool weighted) const {
    std::vector<std::byte> out(static_cast<std::size_t>(table(rank).num_tokens * round_.output_row_bytes()));
    const reference::RowReader reader = [&](int peer, std::int32_t row, std::vector<float>& values) {
      values = round_.row_values(stream, peer, row);
    };
    expectation_.combine(rank, {0, table(rank).num_tokens}, reader, weighted, out.data());
    return out;
  }
  [[nodiscard]] Mismatch check_sums(Round::ValueStream stream, int rank, bool weighted,
                                    const std::vector<std::byte>& out, const std::string& what) const {
    const std::vector<std::byte> expected = combined(stream, rank, weighted);
    EPISTLE_RETURN_MISMATCH(expect_equal(out.size(), expected.size(), what + ": bytes"));
    return compare_bytes(out.data(), expected.data(), out.size(), what);
  }

  /// combine_backward of the gradients of stream `gradients`, with saved rows of stream `saved`: each token's gradient
  /// at each of its rows, times the row's weight.
  struct RowGradients {
    Round::ValueStream gradients = 0;
    Round::ValueStream saved = 0;
    const RowDescription& description;  ///< in host memory, and checked
    const std::byte* rows = nullptr;
    const float* grad_weights = nullptr;  ///< only where weights are applied
  };
  [[nodiscard]] Mismatch check_row_gradients(int rank, const RowGradients& given) const {
    const auto& rows = layout(rank).rows;
    const std::int64_t row_bytes = round_.output_row_bytes();
    const bool weighted = round_.config().apply_weights;
    for (std::size_t row = 0; row < rows.size(); ++row) {
      std::vector<std::byte> expected(static_cast<std::size_t>(row_bytes));
      float product = 0.0F;
      if (rows[row].src_rank >= 0) {
        const auto gradient = round_.row_values(given.gradients, rows[row].src_rank, rows[row].src_token);
        float weight = 0.0F;
        for (std::size_t column = 0; column < weights_per_row(); ++column) {
          weight += given.description.weights[row * weights_per_row() + column];
        }
        for (std::size_t idx = 0; idx < gradient.size(); ++idx) {
          reference::write_element(round_.config().combine_dtype, expected.data(), static_cast<std::int64_t>(idx),
                                   weighted ? weight * gradient[idx] : gradient[idx]);
        }
        product =
            reference::dot_in_lanes(round_.row_values(given.saved, rank, static_cast<std::int64_t>(row)), gradient);
      }
      EPISTLE_RETURN_MISMATCH(compare_bytes(given.rows + static_cast<std::int64_t>(row) * row_bytes, expected.data(),
                                            expected.size(), fmt::format("combine_backward row {}", row)));
      for (std::size_t column = 0; weighted && column < weights_per_row(); ++column) {
        const std::size_t idx = row * weights_per_row() + column;
        const bool is_here = !token_major() || given.description.local_experts[idx] >= 0;
        const float wanted = is_here ? product : 0.0F;
        EPISTLE_RETURN_MISMATCH(
            compare_bytes(&given.grad_weights[idx], &wanted, sizeof(float), fmt::format("grad_weights[{}]", idx)));
      }
    }
    return std::nullopt;
  }

  /// dispatch_backward's gradients of the weights, where every rank gave marked_gradient for its rows: each is back at
  /// its place in the top-k.
  [[nodiscard]] Mismatch check_weight_gradients(int rank, const float* grad_probs) const {
    const ExpertPartition partition{round_.config().num_experts, round_.num_ranks()};
    const auto top_k = static_cast<std::size_t>(round_.config().top_k);
    const std::vector<std::int32_t>& dst_row = layout(rank).dst_row;
    for (std::size_t entry = 0; entry < dst_row.size(); ++entry) {
      float expected = 0.0F;
      if (dst_row[entry] >= 0) {
        const std::size_t column = token_major() ? entry % top_k : 0;
        const std::size_t idx = static_cast<std::size_t>(dst_row[entry]) * weights_per_row() + column;
        expected = marked_gradient(partition.rank_of(table(rank).expert_ids[entry]), idx);
      }
      EPISTLE_RETURN_MISMATCH(expect_equal(grad_probs[entry], expected, fmt::format("grad_probs[{}]", entry)));
    }
    return std::nullopt;
  }

  [[nodiscard]] bool token_major() const { return round_.config().layout == OutputLayout::kTokenMajor; }
  /// Entries of RowDescription::weights that belong to one row.
  [[nodiscard]] std::size_t weights_per_row() const {
    return token_major() ? static_cast<std::size_t>(round_.config().top_k) : 1;
  }

 private:
  /// What the view says of itself.
  [[nodiscard]] Mismatch check_scales_view(const ScalesView& scales, const std::string& what) const {
    const ResolvedConfig& config = round_.config();
    const bool in_columns = config.quantises && config.quantised.order == ScaleOrder::kColumns;
    const bool are_exponents = config.quantises && config.quantised.scales == ScaleFormat::kUe8m0;
    const ScaleFormat format = !are_exponents ? (config.dtype == DType::kRaw ? ScaleFormat::kBytes : ScaleFormat::kFp32)
                               : in_columns   ? ScaleFormat::kUe8m0x4
                                              : ScaleFormat::kUe8m0;
    EPISTLE_RETURN_MISMATCH(expect_equal(to_string(scales.format), to_string(format), what + ": format of scales"));
    if (!in_columns) return expect_equal(scales.column_stride, 1, what + ": column_stride of scales");
    const bool has_blocks = config.layout == OutputLayout::kExpertBlocks;
    const std::int64_t rows = has_blocks ? config.capacity_rows : scales.num_rows;
    EPISTLE_RETURN_MISMATCH(expect_equal(scales.row_stride, 1, what + ": row_stride of scales"));
    EPISTLE_RETURN_MISMATCH(expect_equal(scales.column_stride, (rows + 3) / 4 * 4, what + ": column_stride of scales"));
    EPISTLE_RETURN_MISMATCH(
        expect_equal(scales.rows_per_block, has_blocks ? rows : 0, what + ": rows_per_block of scales"));
    return expect_equal(scales.block_stride, has_blocks ? scales.num_columns * scales.column_stride : 0,
                        what + ": block_stride of scales");
  }

  const Round& round_;
  Expectation expectation_;
  mutable std::optional<Round::Received> received_;  ///< made when it is asked for
};

}  // namespace epistle::testing
