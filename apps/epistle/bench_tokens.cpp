#include "bench_tokens.hpp"

#include <cmath>
#include <cstddef>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "routing/philox.hpp"

namespace epistle::cli {
namespace {

std::int64_t draw_tokens(std::int64_t most, double spread, std::uint64_t seed, std::size_t rank) {
  const auto least = static_cast<std::int64_t>(std::ceil(static_cast<double>(most) * (1.0 - spread)));
  PhiloxStream random(seed, {.stream = RandomStream::kTokenCounts, .rank = static_cast<std::uint32_t>(rank)});
  return least + static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(most - least) + 1));
}

}  // namespace

std::vector<std::int64_t> tokens_per_rank(const BenchOptions& options, int num_ranks) {
  std::vector<std::int64_t> counts = options.num_tokens;
  const auto size = static_cast<std::size_t>(num_ranks);
  if (counts.size() == 1) counts.resize(size, counts.front());
  if (counts.size() != size) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("--tokens lists {} counts, and there {} {} rank{}; give one for every rank, or one for all",
                            counts.size(), num_ranks == 1 ? "is" : "are", num_ranks, num_ranks == 1 ? "" : "s"));
  }
  for (std::size_t rank = 0; rank < size; ++rank) {
    counts[rank] = draw_tokens(counts[rank], options.tokens_spread, options.seed, rank);
  }
  return counts;
}

}  // namespace epistle::cli
