// What one rank puts into a benchmark: payload rows, expert outputs and room for the sums, all from the seed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "epistle/dispatcher.hpp"

#include "measure/pattern.hpp"

namespace epistle {

class BenchInputs {
 public:
  struct Shape {
    int rank = 0;
    std::uint64_t seed = 1;
    std::int64_t num_tokens = 0;
    std::int64_t row_bytes = 0;
    std::int64_t scale_bytes = 0;
    std::int64_t combine_row_bytes = 0;
    DType combine_dtype = DType::kBf16;
  };

  explicit BenchInputs(const Shape& shape);

  [[nodiscard]] const Shape& shape() const noexcept { return shape_; }
  [[nodiscard]] Payload payload() const noexcept {
    return {
        .rows = rows_.data(), .scales = scales_.empty() ? nullptr : scales_.data(), .num_tokens = shape_.num_tokens};
  }
  /// Where combine writes; [num_tokens, combine_row_bytes].
  [[nodiscard]] std::vector<std::byte>& out() noexcept { return out_; }

  /// Writes expert outputs for `num_rows` rows of this rank to `rows`.
  void fill_expert_outputs(std::byte* rows, std::int64_t num_rows) const noexcept;

  /// The key of a row's content; any rank can name any rank's rows.
  [[nodiscard]] RowKey key(RowStream stream, int rank, std::int64_t row) const noexcept {
    return {.seed = shape_.seed, .stream = stream, .rank = rank, .row = row};
  }

 private:
  Shape shape_;
  std::vector<std::byte> rows_;
  std::vector<std::byte> scales_;
  std::vector<std::byte> out_;
};

/// The inputs of one rank for a benchmark of `config` (resolved), whose layout has `params`.
[[nodiscard]] inline BenchInputs make_bench_inputs(int rank, std::uint64_t seed, std::int64_t num_tokens,
                                                   const DispatcherConfig& config, const LayoutParams& params) {
  return BenchInputs({.rank = rank,
                      .seed = seed,
                      .num_tokens = num_tokens,
                      .row_bytes = params.row_bytes,
                      .scale_bytes = params.scale_bytes,
                      .combine_row_bytes = params.combine_row_bytes,
                      .combine_dtype = config.combine_dtype});
}

}  // namespace epistle
