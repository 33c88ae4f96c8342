// The copies of the zero-SM mode, planned from what the device found; without a device.
#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "dispatch/cuda/direct/copy_engines.hpp"

namespace epistle::cuda {
namespace {

/// Which tokens go to which rank, and what find_runs_kernel writes for that.
struct Routing {
  Routing(std::int32_t ranks, std::int32_t tokens) : num_ranks(ranks), num_tokens(tokens) {
    goes.assign(static_cast<std::size_t>(ranks), std::vector<bool>(static_cast<std::size_t>(tokens)));
  }

  /// The starts come in no order, as on the device; of those beyond the room only the number is known.
  [[nodiscard]] CopyPlan plan(std::int32_t num_chunks, std::mt19937& random) const {
    std::vector<std::int32_t> num_starts;
    std::vector<std::int32_t> first_rows;
    std::vector<std::int32_t> chunk_rows;
    std::vector<RunStart> starts(static_cast<std::size_t>(num_ranks * kMaxRunStarts), RunStart{-1, -1});
    for (std::int32_t dst = 0; dst < num_ranks; ++dst) {
      const auto& to = goes[static_cast<std::size_t>(dst)];
      std::vector<RunStart> found;
      std::int32_t row = first_row(dst);
      for (std::int32_t chunk = 0; chunk < num_chunks; ++chunk) {
        const std::int32_t before = row;
        for (std::int64_t token = chunk_begin(num_tokens, num_chunks, chunk);
             token < chunk_begin(num_tokens, num_chunks, chunk + 1); ++token) {
          const auto idx = static_cast<std::size_t>(token);
          if (!to[idx]) continue;
          if (token == 0 || !to[idx - 1]) found.push_back({static_cast<std::int32_t>(token), row});
          ++row;
        }
        chunk_rows.push_back(row - before);
      }
      num_starts.push_back(static_cast<std::int32_t>(found.size()));
      first_rows.push_back(row == first_row(dst) ? 0 : first_row(dst));
      std::shuffle(found.begin(), found.end(), random);
      found.resize(std::min<std::size_t>(found.size(), kMaxRunStarts));
      std::copy(found.begin(), found.end(), starts.begin() + static_cast<std::ptrdiff_t>(dst) * kMaxRunStarts);
    }
    return make_copy_plan({.num_starts = num_starts.data(),
                           .first_row = first_rows.data(),
                           .chunk_rows = chunk_rows.data(),
                           .starts = starts.data()},
                          num_ranks, num_chunks, kHandleId);
  }

  /// Other sources have rows before these.
  [[nodiscard]] static std::int32_t first_row(std::int32_t dst) { return 100 * dst + 7; }

  static constexpr std::uint64_t kHandleId = 5;
  std::int32_t num_ranks;
  std::int32_t num_tokens;
  std::vector<std::vector<bool>> goes;  ///< [rank][token]
};

/// Where every token's row lands if the runs are copied; -1: it is not sent.
std::vector<std::vector<std::int32_t>> landed(const CopyPlan& plan, const Routing& routing) {
  std::vector<std::vector<std::int32_t>> rows(
      static_cast<std::size_t>(routing.num_ranks),
      std::vector<std::int32_t>(static_cast<std::size_t>(routing.num_tokens), -1));
  for (const CopyRun& run : plan.runs) {
    for (std::int32_t i = 0; i < run.num_rows; ++i) {
      auto& row = rows.at(static_cast<std::size_t>(run.dst_rank)).at(static_cast<std::size_t>(run.token + i));
      EXPECT_EQ(row, -1) << "token " << run.token + i << " is sent twice to rank " << run.dst_rank;
      row = run.row + i;
    }
  }
  return rows;
}

TEST(CopyPlan, RunsBringEveryRowToItsPlace) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    Routing routing(static_cast<std::int32_t>(1 + random() % 5), static_cast<std::int32_t>(1 + random() % 90));
    for (auto& to : routing.goes) {
      const auto rarity = 1 + random() % 12;
      bool sent = false;
      for (std::size_t token = 0; token < to.size(); ++token) {
        if (random() % rarity == 0) sent = !sent;
        to[token] = sent;
      }
    }
    const auto num_chunks = static_cast<std::int32_t>(1 + random() % 7);
    const CopyPlan plan = routing.plan(num_chunks, random);
    EXPECT_EQ(plan.prepare_id, Routing::kHandleId);
    if (!plan.has_runs) {
      EXPECT_TRUE(plan.runs.empty());
      continue;
    }
    const auto rows = landed(plan, routing);
    for (std::int32_t dst = 0; dst < routing.num_ranks; ++dst) {
      const auto rank = static_cast<std::size_t>(dst);
      std::int32_t next = Routing::first_row(dst);
      for (std::size_t token = 0; token < rows[rank].size(); ++token) {
        ASSERT_EQ(rows[rank][token], routing.goes[rank][token] ? next : -1) << "rank " << dst << ", token " << token;
        if (routing.goes[rank][token]) ++next;
      }
    }
    EXPECT_TRUE(std::is_sorted(plan.runs.begin(), plan.runs.end(), [](const CopyRun& a, const CopyRun& b) {
      return a.dst_rank != b.dst_rank ? a.dst_rank < b.dst_rank : a.token < b.token;
    }));
    for (std::size_t i = 1; i < plan.runs.size(); ++i) {
      const CopyRun& before = plan.runs[i - 1];
      const CopyRun& run = plan.runs[i];
      if (before.dst_rank != run.dst_rank) continue;
      EXPECT_LT(before.token + before.num_rows, run.token) << "one run in two";
    }
  }
}

TEST(CopyPlan, ChunksAddUpToAllRows) {
  std::mt19937 random(2);
  Routing routing(3, 1000);
  for (auto& to : routing.goes) {
    for (std::size_t token = 0; token < to.size(); ++token) to[token] = random() % 2 == 0;
  }
  constexpr std::int32_t kNumChunks = 16;
  const CopyPlan plan = routing.plan(kNumChunks, random);
  EXPECT_FALSE(plan.has_runs) << "some 750 runs are more than " << kMaxCopyRuns;
  EXPECT_TRUE(plan.runs.empty());
  EXPECT_EQ(plan.num_chunks, kNumChunks);
  for (std::int32_t dst = 0; dst < routing.num_ranks; ++dst) {
    const auto& to = routing.goes[static_cast<std::size_t>(dst)];
    EXPECT_EQ(plan.first_row[static_cast<std::size_t>(dst)], Routing::first_row(dst));
    for (std::int32_t chunk = 0; chunk <= kNumChunks; ++chunk) {
      const std::int64_t begin = chunk_begin(routing.num_tokens, kNumChunks, chunk);
      EXPECT_EQ(plan.chunk_row(dst, chunk), std::count(to.begin(), to.begin() + begin, true)) << dst << " " << chunk;
    }
  }
}

TEST(CopyPlan, RunsAreKeptUpToTheLimit) {
  std::mt19937 random(3);
  for (const std::int32_t num_runs : {kMaxCopyRuns, kMaxCopyRuns + 1}) {
    Routing routing(2, 2 * num_runs);
    for (std::size_t token = 0; token < static_cast<std::size_t>(routing.num_tokens); token += 2) {
      routing.goes[1][token] = true;
    }
    const CopyPlan plan = routing.plan(1, random);
    EXPECT_EQ(plan.has_runs, num_runs <= kMaxCopyRuns);
    EXPECT_EQ(plan.runs.size(), plan.has_runs ? static_cast<std::size_t>(num_runs) : 0U);
  }
}

TEST(CopyPlan, WithoutTokensThereIsNothingToCopy) {
  std::mt19937 random(4);
  const CopyPlan plan = Routing(4, 0).plan(1, random);
  EXPECT_TRUE(plan.has_runs);
  EXPECT_TRUE(plan.runs.empty());
  for (std::int32_t dst = 0; dst < 4; ++dst) EXPECT_EQ(plan.chunk_row(dst, 1), 0);
}

TEST(PackChunks, CoverAllTokensInOrder) {
  std::int32_t last = 1;
  for (const std::int64_t num_tokens : {0, 1, 63, 64, 65, 127, 128, 4096, 4097, 1'000'000}) {
    const std::int32_t num_chunks = num_pack_chunks(num_tokens);
    EXPECT_GE(num_chunks, last) << num_tokens;
    last = num_chunks;
    EXPECT_EQ(chunk_begin(num_tokens, num_chunks, 0), 0);
    EXPECT_EQ(chunk_begin(num_tokens, num_chunks, num_chunks), num_tokens);
    for (std::int32_t chunk = 0; chunk < num_chunks; ++chunk) {
      const std::int64_t size =
          chunk_begin(num_tokens, num_chunks, chunk + 1) - chunk_begin(num_tokens, num_chunks, chunk);
      EXPECT_GE(size, num_tokens / num_chunks);
      EXPECT_LE(size, num_tokens / num_chunks + 1);
    }
  }
}

}  // namespace
}  // namespace epistle::cuda
