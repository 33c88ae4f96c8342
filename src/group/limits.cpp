#include "group/limits.hpp"

#include <fmt/format.h>

#include "epistle/error.hpp"

namespace epistle {

void check_num_ranks(int num_ranks) {
  if (num_ranks >= 1 && num_ranks <= kMaxRanks) return;
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("a group has 1 to {} ranks on one host; {} were asked for", kMaxRanks, num_ranks));
}

}  // namespace epistle
