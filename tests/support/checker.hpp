// Compares what a dispatcher gave in a round with the oracle, bit for bit. Knows nothing of dispatchers: all it sees is
// host memory.
#pragma once

#include <cstddef>
#include <cstdint>
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
  explicit Checker(const Round& round)
      : round_(round),
        expectation_(round.config(), round.effective_tables(),
                     {&round.placement(), round.step_seed(), round.scenario().masked}) {}

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
                                    const std::vector<std::vector<std::byte>>& sources, const std::string& what) const;

  /// Rows and scales of a dispatch of the round's payload.
  [[nodiscard]] Mismatch check_received(int rank, const ReceivedData& received, const std::string& what) const;

  /// What combine of the rows of `stream` must give for all tokens of `rank`.
  [[nodiscard]] std::vector<std::byte> combined(Round::ValueStream stream, int rank, bool weighted) const;
  [[nodiscard]] Mismatch check_sums(Round::ValueStream stream, int rank, bool weighted,
                                    const std::vector<std::byte>& out, const std::string& what) const;

  /// combine_backward of the gradients of stream `gradients`, with saved rows of stream `saved`: each token's gradient
  /// at each of its rows, times the row's weight.
  struct RowGradients {
    Round::ValueStream gradients = 0;
    Round::ValueStream saved = 0;
    const RowDescription& description;  ///< in host memory, and checked
    const std::byte* rows = nullptr;
    const float* grad_weights = nullptr;  ///< only where weights are applied
  };
  [[nodiscard]] Mismatch check_row_gradients(int rank, const RowGradients& given) const;

  /// dispatch_backward's gradients of the weights, where every rank gave marked_gradient for its rows: each is back at
  /// its place in the top-k.
  [[nodiscard]] Mismatch check_weight_gradients(int rank, const float* grad_probs) const;

  [[nodiscard]] bool token_major() const { return round_.config().layout == OutputLayout::kTokenMajor; }
  /// Entries of RowDescription::weights that belong to one row.
  [[nodiscard]] std::size_t weights_per_row() const {
    return token_major() ? static_cast<std::size_t>(round_.config().top_k) : 1;
  }

 private:
  /// What the view says of itself.
  [[nodiscard]] Mismatch check_scales_view(const ScalesView& scales, const std::string& what) const;

  const Round& round_;
  Expectation expectation_;
  mutable std::optional<Round::Received> received_;  ///< made when it is asked for
};

}  // namespace epistle::testing
