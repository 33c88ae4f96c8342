#pragma once

namespace epistle {

/// Most ranks of a group on one host: every rank maps every other rank's memory, and a failure is packed with 16-bit
/// rank numbers.
inline constexpr int kMaxRanks = 1024;

/// Throws kInvalidArgument unless 1 <= num_ranks <= kMaxRanks.
void check_num_ranks(int num_ranks);

}  // namespace epistle
