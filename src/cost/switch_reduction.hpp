// In-network reduction: when it pays that the switches of a domain add the outputs of a token's experts.
#pragma once

namespace epistle {

/// Bytes of one combine that leave a GPU, which both ways are bound by.
struct SwitchReduction {
  double written_bytes = 0;  ///< without: a row for every other rank that a token went to
  double served_bytes = 0;   ///< with: a switch that adds reads every row of every other rank, there or not
  /// Above 1 plain writes are ahead. It is never below: a token goes to all ranks at most.
  [[nodiscard]] double factor() const noexcept { return written_bytes > 0 ? served_bytes / written_bytes : 1.0; }
  /// A tie saves the adding, which SMs do otherwise.
  [[nodiscard]] bool pays() const noexcept {
    constexpr double kTie = 1.02;
    return factor() < kTie;
  }
};

/// Of `num_ranks` ranks in one domain with `tokens_per_rank` rows of `row_bytes` each, a token on `distinct_ranks` of
/// them. A switch sums whole tensors: of ranks that a token did not go to it reads zeros.
[[nodiscard]] constexpr SwitchReduction switch_reduction(double num_ranks, double distinct_ranks,
                                                         double tokens_per_rank, double row_bytes) noexcept {
  const double batch_bytes = tokens_per_rank * row_bytes;
  return {.written_bytes = distinct_ranks * (1.0 - 1.0 / num_ranks) * batch_bytes,
          .served_bytes = (num_ranks - 1.0) * batch_bytes};
}

}  // namespace epistle
