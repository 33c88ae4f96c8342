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
  EPISTLE_RETURN_MISMATCH(expect_equal(received.rows.row_bytes(), round_.row_bytes(), what + ": bytes of a row"));
  EPISTLE_RETURN_MISMATCH(
      expect_equal(received.rows.num_rows, received.num_rows(), what + ": rows of the view, and as described"));
  EPISTLE_RETURN_MISMATCH(check_rows(rank, received.row_data(), round_.row_bytes(), round_.payloads(), what));
  EPISTLE_RETURN_MISMATCH(
      expect_equal(received.scale_row_bytes(), round_.scale_row_bytes(), what + ": bytes of a row's scales"));
  if (round_.scale_row_bytes() == 0) return std::nullopt;
  return check_rows(rank, received.scale_rows(), round_.scale_row_bytes(), round_.all_scales(), what + ", scales");
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

}  // namespace epistle::testing
