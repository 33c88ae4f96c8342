#include "support/checker.hpp"

#include <cstring>

#include <fmt/format.h>

namespace epistle::testing {

Mismatch Checker::check_rows(int rank, const std::byte* rows, std::int64_t row_bytes,
                             const std::vector<std::vector<std::byte>>& sources, const std::string& what) const {
  const auto source_row = [&](int src_rank, std::int64_t src_token, std::byte* row) {
    std::memcpy(row, sources[static_cast<std::size_t>(src_rank)].data() + src_token * row_bytes,
                static_cast<std::size_t>(row_bytes));
  };
  return expectation_.check_rows(
      rank, {.rows = rows, .row_bytes = row_bytes, .range = expectation_.all_rows(rank), .what = what}, source_row);
}

Mismatch Checker::check_received(int rank, const ReceivedData& received, const std::string& what) const {
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

std::vector<std::byte> Checker::combined(Round::ValueStream stream, int rank, bool weighted) const {
  std::vector<std::byte> out(static_cast<std::size_t>(table(rank).num_tokens * round_.output_row_bytes()));
  const reference::RowReader reader = [&](int peer, std::int32_t row, std::vector<float>& values) {
    values = round_.row_values(stream, peer, row);
  };
  expectation_.combine(rank, {0, table(rank).num_tokens}, reader, weighted, out.data());
  return out;
}

Mismatch Checker::check_sums(Round::ValueStream stream, int rank, bool weighted, const std::vector<std::byte>& out,
                             const std::string& what) const {
  const std::vector<std::byte> expected = combined(stream, rank, weighted);
  EPISTLE_RETURN_MISMATCH(expect_equal(out.size(), expected.size(), what + ": bytes"));
  return compare_bytes(out.data(), expected.data(), out.size(), what);
}

Mismatch Checker::check_row_gradients(int rank, const RowGradients& given) const {
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
      product = reference::dot_in_lanes(round_.row_values(given.saved, rank, static_cast<std::int64_t>(row)), gradient);
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

Mismatch Checker::check_weight_gradients(int rank, const float* grad_probs) const {
  const auto top_k = static_cast<std::size_t>(round_.config().top_k);
  const std::vector<std::int32_t>& dst_row = layout(rank).dst_row;
  for (std::size_t entry = 0; entry < dst_row.size(); ++entry) {
    float expected = 0.0F;
    if (dst_row[entry] >= 0) {
      const std::size_t column = token_major() ? entry % top_k : 0;
      const std::size_t idx = static_cast<std::size_t>(dst_row[entry]) * weights_per_row() + column;
      expected = marked_gradient(layout(rank).slots[entry].rank, idx);
    }
    EPISTLE_RETURN_MISMATCH(expect_equal(grad_probs[entry], expected, fmt::format("grad_probs[{}]", entry)));
  }
  return std::nullopt;
}

Mismatch Checker::check_scales_view(const ScalesView& scales, const std::string& what) const {
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

}  // namespace epistle::testing
