// The verification of a benchmark: every output bit of a rank against the oracle, in step with the other ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "epistle/group.hpp"

#include "measure/bench_inputs.hpp"
#include "measure/received_data.hpp"
#include "measure/verify.hpp"

namespace epistle {

class BenchCheck {
 public:
  /// The oracle is slow, so it is asked in parts: all ranks do the same number of them and wait for each other after
  /// each. So nobody falls behind by more than one part, whatever the timeout and the size.
  static constexpr std::int64_t kNumParts = 32;

  /// What poison writes to every byte.
  static constexpr std::byte kPoison{0xa5};

  using OnPart = std::function<void(std::int64_t done, std::int64_t total)>;

  /// Keeps references to all of them.
  BenchCheck(Group& group, const Expectation& expectation, BenchInputs& inputs);

  /// Overwrites what a dispatcher gave, so that nothing left over can pass a later check.
  void poison(const ReceivedData& received);

  /// Collective. Compares `received` and what combine wrote into the inputs' out() with the oracle. Calls `on_part`
  /// after every part. Returns this rank's first difference.
  [[nodiscard]] Mismatch run(const ReceivedData& received, const OnPart& on_part);

  /// Bytes that one run compares on this rank.
  [[nodiscard]] std::int64_t num_bytes(const ReceivedData& received) const;

 private:
  [[nodiscard]] Mismatch check_rows(const ReceivedData& received, RowRange range) const;
  [[nodiscard]] Mismatch check_sums(RowRange tokens);

  Group& group_;
  const Expectation& expectation_;
  BenchInputs& inputs_;
  int rank_;
  /// What combine must give. The same for every dispatcher and every run, so the oracle is asked once per token.
  std::vector<std::byte> expected_out_;
  std::int64_t num_expected_tokens_ = 0;
};

}  // namespace epistle
