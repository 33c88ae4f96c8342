#include "measure/copy_limit.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "dispatch/host/row_kernels.hpp"
#include "dispatch/host/worker_pool.hpp"
#include "measure/span_timer.hpp"
#include "measure/statistics.hpp"

namespace epistle {
namespace {

constexpr std::int64_t kMinCopyBytes = 4096;
constexpr std::int64_t kChunkBytes = 4096;  // how finely the copy is shared among the workers
constexpr int kWarmUps = 3;
constexpr std::int64_t kNumMethods = 2;
constexpr double kMicrosPerSecond = 1e6;

/// Source and target are one half of the working set each.
std::int64_t copy_bytes(std::int64_t working_set_bytes) {
  return std::max(kMinCopyBytes, working_set_bytes / 2) / kChunkBytes * kChunkBytes;
}

}  // namespace

CopyLimit measure_copy_limit(Group& group, const CopyLimitOptions& options) {
  // Equal on all ranks, so that the sum over ranks is what one rank copies times their number.
  std::vector<std::int64_t> wanted(static_cast<std::size_t>(group.size()));
  group.all_gather(&options.working_set_bytes, sizeof(options.working_set_bytes), wanted.data());
  const std::int64_t largest = *std::max_element(wanted.begin(), wanted.end());
  const std::int64_t num_bytes = copy_bytes(largest);
  const std::vector<std::byte> source(static_cast<std::size_t>(num_bytes), std::byte{1});
  std::vector<std::byte> target(static_cast<std::size_t>(num_bytes), std::byte{2});
  host::WorkerPool pool(options.num_workers);
  SpanTimer timer(group);
  const int num_rounds = options.num_iterations + kWarmUps;
  std::int64_t num_done = 0;

  const auto measure = [&](const auto& copy_range) {
    std::vector<double> times_us;
    for (int iteration = 0; iteration < num_rounds; ++iteration) {
      const double time_us = timer.time([&] {
        pool.parallel_for(num_bytes / kChunkBytes, [&](std::int64_t begin, std::int64_t end) {
          copy_range(source.data() + begin * kChunkBytes, target.data() + begin * kChunkBytes,
                     static_cast<std::size_t>((end - begin) * kChunkBytes));
        });
      });
      if (iteration >= kWarmUps) times_us.push_back(time_us);
      if (options.on_iteration) options.on_iteration(++num_done, kNumMethods * num_rounds);
    }
    const double moved_bytes = 2.0 * static_cast<double>(num_bytes) * group.size();
    return moved_bytes / (summarize(times_us).median / kMicrosPerSecond);
  };

  CopyLimit limit;
  limit.working_set_bytes = 2 * num_bytes;
  limit.memcpy_bytes_per_s =
      measure([](const std::byte* from, std::byte* to, std::size_t length) { std::memcpy(to, from, length); });
  limit.streaming_bytes_per_s = measure([](const std::byte* from, std::byte* to, std::size_t length) {
    host::copy_row(from, to, length, host::StoreMode::kStreaming);
    host::store_fence();
  });
  const bool streaming_wins = limit.streaming_bytes_per_s > limit.memcpy_bytes_per_s;
  limit.method = streaming_wins ? "streaming" : "memcpy";
  limit.bytes_per_s = std::max(limit.streaming_bytes_per_s, limit.memcpy_bytes_per_s);
  return limit;
}

}  // namespace epistle
