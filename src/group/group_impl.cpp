#include "group/group_impl.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>
#include <numeric>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "core/settings.hpp"
#include "group/caller_complaint.hpp"
#include "group/limits.hpp"

namespace epistle {

using Clock = std::chrono::steady_clock;

namespace {

// Longest sleep between two looks at the peers: bounds how late the death of a peer is seen. Longer where many ranks
// share a core, which could do nothing but look otherwise.
constexpr std::int64_t kLookIntervalUs = 10'000;
constexpr int kLookersPerCore = 16;
// Peers that one look takes in; every rank begins somewhere else, so together they see all.
constexpr int kPeersPerLook = 32;
// A rank that shares its core with others must not keep it busy; one that has its own gains several microseconds per
// step by not sleeping.
constexpr std::chrono::microseconds kSpinWithOwnCore{100};
constexpr std::chrono::microseconds kSpinOnSharedCore{1};
// Ranks that are in step come within a microsecond; a pause takes up to 60 ns of that.
constexpr int kLooksWithoutPause = 400;
// Up to so many ranks look at each other's arrivals: a line for each of them, all on their way at once.
constexpr int kMostRanksToLookAt = 4;

/// A rank that ran out of something is no refusal of an input: the others give the same code.
ErrorCode code_for_peers(ErrorCode code) noexcept {
  return code == ErrorCode::kOutOfMemory || code == ErrorCode::kSystem ? code : ErrorCode::kPeerRejected;
}

bool complaint_blames_another(const Error& complaint) noexcept { return complaint.context().peer_rank >= 0; }

std::int64_t add_saturating(std::int64_t a, std::int64_t b) noexcept {
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  return a > kMax - b ? kMax : a + b;
}

}  // namespace

GroupImpl::GroupImpl(std::shared_ptr<World> world, int rank, int num_ranks, std::chrono::milliseconds timeout)
    : world_(std::move(world)),
      rank_(rank),
      num_ranks_(num_ranks),
      domains_(num_ranks),
      timeout_(timeout),
      mask_(num_ranks),
      gpu_domains_(num_ranks) {
  const std::int64_t spin_us = settings().spin_us();
  const int num_cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  const bool own_core = num_ranks <= num_cores;
  spin_ = spin_us >= 0 ? std::chrono::microseconds(spin_us) : own_core ? kSpinWithOwnCore : kSpinOnSharedCore;
  look_interval_us_ = kLookIntervalUs * std::max(1, num_ranks / (num_cores * kLookersPerCore));
  const Complaint complaint = attempt([&] {
    world_->found(rank, ControlView::reserved_bytes(num_ranks), timeout_,
                  [this](SymmetricRegion region) { attach(std::move(region)); });
  });
  if (complaint) {
    // Those that have attached wait for what rank 0 makes of it, and all must hear of the same failure.
    const int peer_rank = complaint->context().peer_rank;
    if (control_.num_ranks() != 0) fail_founding(complaint->code(), peer_rank >= 0 ? peer_rank : rank_, complaint);
    throw Error(*complaint);
  }
  if (rank == world_->leader_of(rank)) {
    // pairs with wait_until_founded()
    control_.group().founded.store(1, std::memory_order_release);
  } else {
    wait_until_founded();
  }
}

void GroupImpl::fail_founding(ErrorCode code, int peer_rank, const Complaint& complaint) {
  // Hosts tell each other of it in other ways then (HostsWorld::found).
  const GroupFailure agreed = decide({code, Phase::kCreate, peer_rank, rank_});
  depart();
  if (complaint && agreed.code == code && agreed.peer_rank == peer_rank) throw Error(*complaint);
  raise(agreed, nullptr);
}

void GroupImpl::wait_until_founded() {
  constexpr std::chrono::microseconds kPause{200};
  // Rank 0 waits for the others as long as this, and then says who was missing.
  const Clock::time_point deadline = Clock::now() + timeout_ + patience_behind_root(timeout_);
  const int leader = world_->leader_of(rank_);
  while (control_.group().founded.load(std::memory_order_acquire) == 0) {
    if (agreed_failure()) fail_founding(ErrorCode::kPeerLost, leader, std::nullopt);
    if (is_lost(leader)) fail_founding(ErrorCode::kPeerLost, leader, std::nullopt);
    if (Clock::now() >= deadline) fail_founding(ErrorCode::kTimeout, leader, std::nullopt);
    std::this_thread::sleep_for(kPause);
  }
}

GroupImpl::~GroupImpl() { depart(); }

void GroupImpl::attach(SymmetricRegion region) {
  region.commit(0, ControlView::committed_bytes(rank_, num_ranks_));
  // The memory is zero-filled, which is the initial state of every atomic here.
  control_ = ControlView(std::move(region), num_ranks_);
  // Ranks of other hosts are counted by the uplink.
  const bool looks_at_each = world_->num_hosts() == 1 && num_ranks_ <= kMostRanksToLookAt;
  barrier_ = control_.barrier_of(rank_, looks_at_each ? BarrierKind::kAtArrivals : BarrierKind::kAtCounter);
  rank_control(rank_).process = world_->own_process();
  rank_control(rank_).state.store(RankState::kActive, std::memory_order_release);
}

void GroupImpl::depart() noexcept {
  rank_control(rank_).state.store(RankState::kDeparted, std::memory_order_release);
  world_->notify();
}

// ---- Steps ----------------------------------------------------------------------------------------------------------

Ticket GroupImpl::arrive(const Call& call, const Complaint& complaint) {
  const Ticket ticket = barrier_.next_ticket();
  // Arriving twice would let the others go on before all ranks have done what the first arrival stands for.
  settle_open_step();
  CallPost& post = rank_control(rank_).posts[ticket & 1];
  post.ticket = ticket;
  post.call = call;
  post.status = complaint ? complaint->code() : ErrorCode::kOk;
  post.blames_another = complaint && complaint_blames_another(*complaint);
  if (complaint) {
    const std::string* const of_caller = CallerComplaint::current();
    const std::string_view found = of_caller != nullptr ? std::string_view(*of_caller) : complaint->message();
    const std::string_view text = found.substr(0, post.message.size() - 1);
    std::copy(text.begin(), text.end(), post.message.begin());
    post.message[text.size()] = '\0';
  }
  (void)barrier_.arrive(complaint ? 0 : call.in_a_word());
  world_->notify();
  return ticket;
}

Ticket GroupImpl::arrive(const Call& call) { return arrive(call, std::nullopt); }

void GroupImpl::settle_open_step() {
  const Ticket ticket = barrier_.next_ticket() - 1;
  if (last_waited_ == ticket) return;
  wait_for_all(ticket, Phase::kBarrier, {});
  const Complaint found = attempt([&] { (void)compare_posts(ticket, Phase::kBarrier, std::nullopt); });
  if (found) refused_steps_.push_back({ticket, *found});
}

void GroupImpl::throw_settled(Ticket ticket, Phase phase) {
  const auto refused = std::find_if(refused_steps_.begin(), refused_steps_.end(),
                                    [ticket](const RefusedStep& step) { return step.ticket == ticket; });
  if (refused == refused_steps_.end()) return;
  const Error error = refused->error;
  refused_steps_.erase(refused);
  Error::Context context = error.context();
  context.phase = phase;
  throw AgreedError(error.code(), std::string(error.message()), context);
}

void GroupImpl::wait(Ticket ticket, Phase phase, const MissingRows* missing_rows) {
  // The steps behind it have waited for it already.
  if (static_cast<std::int32_t>(last_waited_ - ticket) >= 0) {
    check_usable();
    return throw_settled(ticket, phase);
  }
  wait_for_all(ticket, phase, {.before = missing_rows});
  (void)compare_posts(ticket, phase, std::nullopt);
}

std::int64_t GroupImpl::agree(const Call& call, Phase phase, const Complaint& complaint,
                              const MissingRows* missing_rows) {
  check_usable(missing_rows);
  const Ticket ticket = arrive(call, complaint);
  wait_for_all(ticket, phase, {.before = missing_rows, .behind = missing_rows});
  return compare_posts(ticket, phase, complaint);
}

std::int32_t GroupImpl::announced_buffer(int peer) const noexcept {
  if (is_masked(peer)) return 0;
  const int teller = barrier_.was_unanimous(last_waited_) ? rank_ : peer;
  return rank_control(teller).posts[last_waited_ & 1].call.buffer;
}

void GroupImpl::throw_refusals(Ticket ticket, Phase phase, const Complaint& complaint) const {
  int refuser = -1;
  for (int peer = num_ranks_ - 1; peer >= 0; --peer) {
    if (is_masked(peer)) continue;
    const CallPost& post = rank_control(peer).posts[ticket & 1];
    if (post.status == ErrorCode::kOk) continue;
    // The first that refuses of itself; the first of all where every one blames another.
    const bool better = refuser < 0 || !post.blames_another || rank_control(refuser).posts[ticket & 1].blames_another;
    if (better) refuser = peer;
  }
  if (refuser < 0) return;
  const CallPost& refusal = rank_control(refuser).posts[ticket & 1];
  if (complaint && (refuser == rank_ || refusal.blames_another || !complaint_blames_another(*complaint))) {
    if (complaint->context().rank >= 0) throw AgreedError(*complaint);
    throw AgreedError(complaint->code(), std::string(complaint->message()), {.rank = rank_, .phase = phase});
  }
  const ErrorCode code = code_for_peers(refusal.status);
  throw AgreedError(code,
                    fmt::format("rank {} cannot take part in '{}' ({}); nothing was sent", refuser,
                                refusal.call.describe(), refusal.message.data()),
                    {.rank = rank_, .peer_rank = refuser, .phase = phase});
}

std::int64_t GroupImpl::compare_posts(Ticket ticket, Phase phase, const Complaint& complaint) const {
  // What comparing would find. The posts are left unread, each in the cache of the rank that writes it: fetching them,
  // and having them back for the next step, would cost more than the barrier.
  if (barrier_.was_unanimous(ticket)) return kAnyValue;
  throw_refusals(ticket, phase, complaint);
  const auto post_of = [&](int rank) -> const CallPost& { return rank_control(rank).posts[ticket & 1]; };
  // Compared with the first rank rather than with this one, so that all ranks come to the same verdict.
  const CallPost& first = post_of(first_member());
  std::int64_t agreed_value = kAnyValue;
  for (int peer = 0; peer < num_ranks_; ++peer) {
    if (is_masked(peer)) continue;
    const CallPost& other = post_of(peer);
    const Error::Context context{.rank = rank_, .peer_rank = peer, .phase = phase};
    if (other.call.kind != first.call.kind || other.call.subject != first.call.subject ||
        other.call.detail != first.call.detail || other.call.step != first.call.step) {
      throw AgreedError(
          ErrorCode::kShapeMismatch,
          fmt::format("rank {} calls {}, rank {} calls {}; all ranks must make the same calls in the same "
                      "order; nothing was sent",
                      first_member(), first.call.describe(), peer, other.call.describe()),
          context);
    }
    if (agreed_value == kAnyValue) agreed_value = other.call.value;
    if (other.call.value == kAnyValue || other.call.value == agreed_value) continue;
    throw AgreedError(
        ErrorCode::kShapeMismatch,
        fmt::format("some ranks give gradients of the weights to {}, others do not (seen at rank {}); all or "
                    "none must; nothing was sent",
                    first.call.describe(), peer),
        context);
  }
  return agreed_value;
}

void GroupImpl::barrier(Phase phase) { (void)agree({.kind = CallKind::kBarrier}, phase); }

void GroupImpl::all_gather(const void* input, std::size_t num_bytes, void* output, Phase phase) {
  const bool lacks_memory = num_bytes > 0 && (input == nullptr || output == nullptr);
  const Complaint complaint =
      lacks_memory ? Complaint(Error(ErrorCode::kInvalidArgument, "the input or the output of all_gather is null"))
                   : std::nullopt;
  gather_bytes({.kind = CallKind::kAllGather, .detail = num_bytes}, phase, {input, num_bytes, output}, complaint);
}

void GroupImpl::gather_bytes(const Call& call, Phase phase, const GatherBuffers& buffers, const Complaint& complaint) {
  const auto* source = static_cast<const std::byte*>(buffers.input);
  auto* target = static_cast<std::byte*>(buffers.output);
  std::size_t done = 0;
  do {
    check_usable();
    // Before that the others may still read what this rank has put into the slot two steps ago.
    settle_open_step();
    const std::size_t chunk = complaint ? 0 : std::min(kGatherSlotBytes, buffers.num_bytes - done);
    const std::size_t slot = barrier_.next_ticket() & 1;
    if (chunk > 0) std::memcpy(rank_control(rank_).gather_slots[slot].data(), source + done, chunk);
    Call step = call;
    step.gathered_bytes = static_cast<std::int32_t>(chunk);
    (void)agree(step, phase, complaint);
    for (int peer = 0; chunk > 0 && peer < num_ranks_; ++peer) {
      std::byte* const part = target + static_cast<std::size_t>(peer) * buffers.num_bytes + done;
      if (is_masked(peer)) {
        std::memset(part, 0, chunk);
      } else {
        std::memcpy(part, rank_control(peer).gather_slots[slot].data(), chunk);
      }
    }
    done += chunk;
  } while (done < buffers.num_bytes);
}

void GroupImpl::ask_for_memory(std::int64_t num_bytes, Phase phase) {
  // Reading what is available takes longer than a small call.
  constexpr std::int64_t kMinBytesToAsk = std::int64_t{64} << 20;
  const Call call{.kind = CallKind::kAskForMemory};
  std::vector<std::int64_t> all = gather(call, phase, num_bytes);
  for (const int masked : masked_ranks()) all[static_cast<std::size_t>(masked)] = 0;
  if (std::accumulate(all.begin(), all.end(), std::int64_t{0}, add_saturating) < kMinBytesToAsk) return;
  const std::vector<AvailableMemory> seen = gather(call, phase, available_memory());
  for (int host = 0; host < num_hosts(); ++host) check_memory_of(host, all, seen, phase);
}

void GroupImpl::check_memory_of(int host, const std::vector<std::int64_t>& needed_by_rank,
                                const std::vector<AvailableMemory>& seen, Phase phase) const {
  std::int64_t needed = 0;
  int num_here = 0;
  std::size_t largest = 0;
  const AvailableMemory* least = nullptr;
  for (std::size_t rank = 0; rank < seen.size(); ++rank) {
    if (host_of(static_cast<int>(rank)) != host || is_masked(static_cast<int>(rank))) continue;
    needed = add_saturating(needed, needed_by_rank[rank]);
    if (num_here++ == 0 || needed_by_rank[rank] > needed_by_rank[largest]) largest = rank;
    if (least == nullptr || seen[rank].bytes < least->bytes) least = &seen[rank];
  }
  if (least == nullptr || least->bytes < 0) return;  // the kernel does not tell everywhere
  const std::int64_t reserve = memory_reserve_bytes(least->bytes);
  if (needed <= least->bytes - reserve) return;
  throw AgreedError(
      ErrorCode::kOutOfMemory,
      fmt::format("{} bytes of memory are needed ({} by rank {}, the most of any of {} ranks), and {} of the {} bytes "
                  "of {} are available, less a reserve of {}; use fewer tokens, capacity sizing, a smaller capacity or "
                  "more memory; nothing was taken",
                  needed, needed_by_rank[largest], largest, num_here, least->bytes, least->limit_bytes, least->owner(),
                  reserve),
      {.rank = rank_, .phase = phase});
}

// ---- Steps that ranks take alone ------------------------------------------------------------------------------------

Watch GroupImpl::watch() const {
  // A rank that has arrived in the step's conclusion has said all it has to say elsewhere.
  const Ticket conclusion = barrier_.next_ticket();
  return {.deadline = Clock::now() + timeout_ +
                      (rank_ == world_->leader_of(rank_) ? std::chrono::milliseconds(0) : timeout_ / 4),
          .num_members = mask_.num_members(),
          .is_hopeless = [this, conclusion](int peer) {
            return agreed_failure() || is_lost(peer) || barrier_.has_arrived(peer, conclusion);
          }};
}

void GroupImpl::conclude(const Call& call, const Complaint& complaint) {
  check_usable();
  const bool is_loss = complaint && complaint->context().peer_rank >= 0 &&
                       (complaint->code() == ErrorCode::kPeerLost || complaint->code() == ErrorCode::kTimeout);
  if (is_loss) fail(complaint->code(), complaint->context().phase, complaint->context().peer_rank);
  (void)agree(call, Phase::kCreate, complaint);
}

SymmetricRegion GroupImpl::create_region(std::int64_t reserved_bytes) {
  const Call call{.kind = CallKind::kCreateRegion, .detail = static_cast<std::uint64_t>(reserved_bytes)};
  (void)agree(call, Phase::kCreate);
  SymmetricRegion region;
  const int region_idx = num_regions_++;
  if (fetches_descriptors()) return create_region_of_members(reserved_bytes);
  const Complaint complaint =
      attempt([&] { region = world_->create_region(rank_, region_idx, reserved_bytes, watch()); });
  conclude(call, complaint);
  return region;
}

std::vector<UniqueFd> GroupImpl::exchange_fds(const UniqueFd& own) {
  const Call call{.kind = CallKind::kExchangeDescriptors};
  if (fetches_descriptors()) return num_hosts() == 1 ? mail_descriptors(own) : fetch_descriptors(own, std::nullopt);
  if (world_->kind() != GroupKind::kThreads) (void)agree(call, Phase::kCreate);
  std::vector<UniqueFd> files;
  const Complaint complaint = attempt([&] { files = world_->exchange_fds(own, watch()); });
  if (complaint && complaint->code() == ErrorCode::kUnsupported) throw Error(*complaint);
  conclude(call, complaint);
  return files;
}

// ---- Waiting --------------------------------------------------------------------------------------------------------

std::optional<GroupFailure> GroupImpl::look_for_lost_ranks(Ticket ticket, Phase phase, int& next_look) const noexcept {
  for (int num_looks = 0, num_seen = 0; num_seen < num_ranks_ && num_looks < kPeersPerLook; ++num_seen) {
    const int peer = next_look;
    next_look = (next_look + 1) % num_ranks_;
    if (peer == rank_ || is_masked(peer) || barrier_.has_arrived(peer, ticket)) continue;
    ++num_looks;
    // Look again after the death was seen: the peer may have arrived just before it went.
    if (is_lost(peer) && !barrier_.has_arrived(peer, ticket)) return loss_of(peer, phase);
  }
  return std::nullopt;
}

void GroupImpl::wait_for_all(Ticket ticket, Phase phase, const OwedRows& owed) {
  // Where the ranks are in step, reading the clock would take as long as waiting.
  if (spin_ > kSpinOnSharedCore) {
    for (int look = 0; look < kLooksWithoutPause && !barrier_.passed(ticket); ++look) {
    }
    barrier_.spin(ticket);
  }
  if (!barrier_.passed(ticket)) wait_and_look(ticket, phase, owed);
  last_waited_ = ticket;
  // A rank that was given up may arrive late and complete the barrier: it must not go on alone.
  check_usable(owed.behind);
}

bool GroupImpl::uplink_stands_still(UplinkWatch& uplink, Clock::time_point now) const noexcept {
  if (num_hosts() == 1 || world_->leader_of(rank_) == rank_) return false;
  const std::uint32_t beats = control_.group().uplink_beats.load(std::memory_order_relaxed);
  if (std::exchange(uplink.beats, beats) != beats) uplink.last_beat = now;
  return now - uplink.last_beat > longest_silence(timeout_);
}

bool GroupImpl::uplink_has_ended(Ticket ticket) const noexcept {
  if (num_hosts() == 1) return false;
  const int leader = world_->leader_of(rank_);
  // pairs with the end of the uplink. One that leaves tells the others first, and its rank counts as departed before.
  const bool is_gone = control_.group().uplink_gone.load(std::memory_order_acquire) != 0;
  if (!is_gone && (leader == rank_ || !is_lost(leader))) return false;
  // Looked at behind its end: what it has carried until then is here.
  for (int peer = 0; peer < num_ranks_; ++peer) {
    if (host_of(peer) != host_of(rank_) && !is_masked(peer) && !barrier_.has_arrived(peer, ticket)) return true;
  }
  return false;
}

/// Whom to name when the time is up; -1 = all have come meanwhile. A rank that calls set_mask waits itself for one that
/// does not come, so it is named last.
int GroupImpl::find_late_rank(Ticket ticket) const noexcept {
  const auto next_mask = next_mask_number(mask_number_of_group());
  int late = -1;
  for (int peer = 0; peer < num_ranks_; ++peer) {
    if (is_masked(peer) || barrier_.has_arrived(peer, ticket)) continue;
    if (!proposes(peer, next_mask)) return peer;
    if (late < 0) late = peer;
  }
  return late;
}

void GroupImpl::wait_and_look(Ticket ticket, Phase phase, const OwedRows& owed) {
  const Clock::time_point start = Clock::now();
  const Clock::time_point deadline = start + timeout_;
  Clock::time_point next_look = start + std::chrono::microseconds(look_interval_us_);
  int next_peer = (rank_ + 1) % num_ranks_;
  UplinkWatch uplink{.beats = 0, .last_beat = start};
  for (Clock::time_point now = start; !barrier_.passed(ticket); now = Clock::now()) {
    if (now - start < spin_ && now < next_look) {
      barrier_.spin(ticket);
      continue;
    }
    if (now - start >= spin_) barrier_.sleep(ticket, look_interval_us_);
    if (barrier_.passed(ticket)) break;
    now = Clock::now();
    next_look = now + std::chrono::microseconds(look_interval_us_);
    // The failure may be of a later step, which the rank at fault did not reach.
    if (const auto failure = agreed_failure()) {
      raise(*failure, barrier_.has_arrived(failure->peer_rank, ticket) ? owed.behind : owed.before);
    }
    if (const auto lost = look_for_lost_ranks(ticket, phase, next_peer)) raise(agree_on(*lost), owed.before);
    // Of other hosts nothing is heard then: it is the rank that leads here that is at fault, not those.
    if (uplink_has_ended(ticket)) raise(agree_on(loss_of(world_->leader_of(rank_), phase)), owed.before);
    if (uplink_stands_still(uplink, now)) {
      raise(agree_on({ErrorCode::kTimeout, phase, world_->leader_of(rank_), rank_}), owed.before);
    }
    if (now < deadline) continue;
    if (const int late = find_late_rank(ticket); late >= 0) {
      raise(agree_on({ErrorCode::kTimeout, phase, late, rank_}), owed.before);
    }
  }
}

}  // namespace epistle
