#include "dispatch/link/link_traffic.hpp"

#include <algorithm>
#include <chrono>
#include <thread>

#include "group/barrier.hpp"

namespace epistle {
namespace {

using Clock = std::chrono::steady_clock;

// Large enough that what comes with every message (some 10 us of a TCP stack) does not count, small enough that a
// transfer of some MB is several.
constexpr std::int64_t kChunkBytes = 256 << 10;

// A waiting rank keeps its core for as long as a chunk takes on a fast link, and leaves it to others after that.
constexpr std::chrono::microseconds kSpin{20};
constexpr std::chrono::microseconds kPause{50};
// Between two looks at the other ranks.
constexpr std::chrono::milliseconds kLookInterval{10};

}  // namespace

Chunks::Chunks(std::int64_t num_rows, std::int64_t row_bytes) noexcept
    : num_rows_(num_rows), chunk_rows_(std::max<std::int64_t>(kChunkBytes / std::max<std::int64_t>(row_bytes, 1), 1)) {}

Chunk Chunks::at(std::int64_t idx) const noexcept {
  return {.begin = idx * chunk_rows_, .end = std::min((idx + 1) * chunk_rows_, num_rows_)};
}

LinkTraffic::LinkTraffic(GroupImpl& group, const Domains& domains, DomainLink& link, const BufferPlan& plan,
                         const RankMemory& memory)
    : group_(group),
      domains_(domains),
      link_(&link),
      plan_(plan),
      memory_(memory),
      taken_(static_cast<std::size_t>(group.num_ranks()), 0) {}

void LinkTraffic::restart(DomainLink& link) noexcept {
  link_ = &link;
  std::fill(taken_.begin(), taken_.end(), 0);
}

int LinkTraffic::some_peer() const noexcept {
  const int num_ranks = group_.num_ranks();
  // The rank of this one's index in the next domain first.
  for (int step = 0; step < num_ranks; ++step) {
    const int rank = (group_.rank() + domains().size() + step) % num_ranks;
    if (!domains().share_one(rank, group_.rank()) && !group_.is_masked(rank)) return rank;
  }
  return peer_in((own_domain() + 1) % domains().count());
}

void LinkTraffic::put(const Put& what) {
  const bool on_gpu = gpu_ != nullptr && !what.in_host;
  const std::int64_t target = plan_.section_offset(what.to) + what.to_row * what.row_bytes;
  const std::byte* const source = on_gpu ? gpu_->sections[static_cast<std::size_t>(what.from)]
                                         : memory_.section(group_.rank(), what.from, what.from_buffer);
  link_->put(what.peer, target + (on_gpu ? gpu_->offset : 0), source + what.from_row * what.row_bytes,
             what.num_rows * what.row_bytes);
}

std::int64_t LinkTraffic::arrived(int peer) {
  const std::uint64_t signals = link_->signals_from(peer);
  return static_cast<std::int64_t>(signals - taken_[static_cast<std::size_t>(peer)]);
}

void LinkTraffic::wait_for(int peer, std::int64_t num_chunks, Phase phase, const MissingRows& missing_rows) {
  wait(phase, peer, missing_rows, [&] { return arrived(peer) >= num_chunks; });
}

void LinkTraffic::flush(Phase phase, const MissingRows& missing_rows) {
  wait(phase, -1, missing_rows, [&] { return link_->try_flush(); });
}

template <typename IsDone>
void LinkTraffic::wait(Phase phase, int peer, const MissingRows& missing_rows, const IsDone& is_done) {
  const Clock::time_point start = Clock::now();
  Clock::time_point next_look = start + kLookInterval;
  while (!is_done()) {
    const Clock::time_point now = Clock::now();
    if (now - start < kSpin) {
      spin_pause();
      continue;
    }
    std::this_thread::sleep_for(kPause);
    if (now < next_look) continue;
    next_look = now + kLookInterval;
    group_.check_usable(&missing_rows);
    // Look again after the death was seen: what the rank has sent may have arrived just before it went.
    if (group_.find_lost_rank() >= 0 && !is_done()) group_.fail_if_lost(phase, &missing_rows);
    if (now - start < group_.timeout() || is_done()) continue;
    // Whoever is waited for; a flush waits for whichever peer takes nothing.
    const int late = peer >= 0 ? peer : some_peer();
    group_.fail(ErrorCode::kTimeout, phase, late, &missing_rows);
  }
}

}  // namespace epistle
