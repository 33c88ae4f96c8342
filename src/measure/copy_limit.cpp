#include "measure/copy_limit.hpp"

#include <algorithm>
#include <cstring>

#include "dispatch/host/engine/row_kernels.hpp"
#include "measure/statistics.hpp"

namespace epistle {
namespace {

constexpr std::int64_t kMinCopyBytes = 4096;
constexpr std::int64_t kChunkBytes = 4096;  // how finely the copy is shared among the workers
constexpr int kWarmUps = 2;

/// Source and target are one half of the working set each; equal on all ranks, so that the sum over ranks is what one
/// rank copies times their number.
std::size_t agree_on_copy_bytes(Group& group, std::int64_t working_set_bytes) {
  std::vector<std::int64_t> wanted(static_cast<std::size_t>(group.size()));
  group.all_gather(&working_set_bytes, sizeof(working_set_bytes), wanted.data());
  const std::int64_t largest = *std::max_element(wanted.begin(), wanted.end());
  return static_cast<std::size_t>(std::max(kMinCopyBytes, largest / 2) / kChunkBytes * kChunkBytes);
}

}  // namespace

CopyProbe::CopyProbe(Group& group, const CopyLimitOptions& options)
    : group_(&group),
      timer_(group),
      pool_(options.num_workers),
      source_(agree_on_copy_bytes(group, options.working_set_bytes), std::byte{1}),
      target_(source_.size(), std::byte{2}) {
  for (int warm_up = 0; warm_up < kWarmUps; ++warm_up) sample();
  memcpy_us_.clear();
  streaming_us_.clear();
}

void CopyProbe::sample() {
  const auto time_copy = [this](const auto& copy_range) {
    const auto num_chunks = static_cast<std::int64_t>(source_.size()) / kChunkBytes;
    return timer_.time([&] {
      pool_.parallel_for(num_chunks, [&](std::int64_t begin, std::int64_t end) {
        copy_range(source_.data() + begin * kChunkBytes, target_.data() + begin * kChunkBytes,
                   static_cast<std::size_t>((end - begin) * kChunkBytes));
      });
    });
  };
  memcpy_us_.push_back(
      time_copy([](const std::byte* from, std::byte* to, std::size_t length) { std::memcpy(to, from, length); }));
  streaming_us_.push_back(time_copy([](const std::byte* from, std::byte* to, std::size_t length) {
    host::copy_row(from, to, length, host::StoreMode::kStreaming);
    host::store_fence();
  }));
}

double CopyProbe::bytes_per_s(const std::vector<double>& times_us) const {
  const double moved_bytes = 2.0 * static_cast<double>(source_.size()) * group_->size();
  const double median_us = summarize(times_us).median;
  return median_us > 0.0 ? moved_bytes / (median_us / kMicrosPerSecond) : 0.0;
}

CopyLimit CopyProbe::limit() const {
  CopyLimit limit;
  limit.working_set_bytes = 2 * static_cast<std::int64_t>(source_.size());
  limit.memcpy_bytes_per_s = bytes_per_s(memcpy_us_);
  limit.streaming_bytes_per_s = bytes_per_s(streaming_us_);
  const bool streaming_wins = limit.streaming_bytes_per_s > limit.memcpy_bytes_per_s;
  limit.method = streaming_wins ? "streaming" : "memcpy";
  limit.bytes_per_s = std::max(limit.streaming_bytes_per_s, limit.memcpy_bytes_per_s);
  return limit;
}

}  // namespace epistle
