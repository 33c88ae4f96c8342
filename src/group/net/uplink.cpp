#include "group/net/uplink.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include <poll.h>
#include <unistd.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/complaint.hpp"
#include "core/log.hpp"
#include "group/limits.hpp"
#include "group/net/stream.hpp"

namespace epistle {
namespace {

// How late the death of a rank of this host is told to the others, unless ranks here see it first.
constexpr std::chrono::milliseconds kMaxTick{20};
constexpr std::chrono::milliseconds kMinTick{2};
constexpr int kTicksPerTimeout = 50;
constexpr int kHeartbeatsPerTimeout = 16;
constexpr std::chrono::milliseconds kMaxHeartbeat{1000};
constexpr std::chrono::milliseconds kMaxGoodbye{2000};
constexpr std::size_t kMaxReadBytes = std::size_t{1} << 20;

std::chrono::milliseconds tick_of(std::chrono::milliseconds timeout) {
  return std::clamp(timeout / kTicksPerTimeout, kMinTick, kMaxTick);
}

}  // namespace

Uplink::Uplink(Setup setup)
    : table_(std::move(setup.table)),
      host_(setup.host),
      links_(table_.hosts.size()),
      wake_(setup.wake),
      control_(std::move(setup.control)),
      timeout_(setup.timeout),
      is_alive_(std::move(setup.is_alive)),
      told_arrival_(table_.host_of.size(), 0),
      told_departure_(table_.host_of.size(), false),
      mask_(static_cast<int>(table_.host_of.size())),
      told_proposals_(table_.host_of.size()) {
  const Clock::time_point now = Clock::now();
  for (std::size_t host = 0; host < links_.size(); ++host) {
    links_[host].socket = std::move(setup.links[host]);
    links_[host].heard = now;
    links_[host].told = now;
  }
  for (int rank = 0; rank < static_cast<int>(table_.host_of.size()); ++rank) {
    barriers_.push_back(control_.barrier_of(rank));
    if (table_.host_of[static_cast<std::size_t>(rank)] == host_) continue;
    control_.rank(rank).state.store(RankState::kActive, std::memory_order_release);
  }
  thread_ = std::thread([this] { run(); });
}

Uplink::~Uplink() {
  stop_deadline_ = Clock::now() + std::min(timeout_ / 4, kMaxGoodbye);
  stops_.store(true, std::memory_order_release);  // pairs with the acquire in work()
  const std::uint64_t one = 1;
  (void)!::write(wake_, &one, sizeof(one));
  thread_.join();
}

void Uplink::run() noexcept {
  if (const Complaint broken = attempt([this] { work(); })) {
    // The other hosts see the connections end, and the ranks here that nobody answers.
    log_error(fmt::format("the connection to the other hosts is given up: {}", broken->what()));
  }
  for (Link& link : links_) link.socket.reset();
  // pairs with GroupImpl::agree_on()
  control_.group().uplink_gone.store(1, std::memory_order_release);
}

void Uplink::work() {
  for (;;) {
    // Read first: what the rank that stops us has done before is seen below.
    const bool stops = stops_.load(std::memory_order_acquire);
    control_.group().uplink_beats.fetch_add(1, std::memory_order_relaxed);
    hear_all();
    follow_own_mask();
    let_in_waiting();
    watch_silence();
    tell_proposals();
    tell_arrivals();
    tell_departures();
    tell_failures();
    send_heartbeats();
    flush();
    if (stops && (has_finished() || Clock::now() >= stop_deadline_)) break;
    sleep();
  }
  say_goodbye();
}

void Uplink::sleep() const {
  std::vector<pollfd> entries = {{wake_, POLLIN, 0}};
  for (const Link& link : links_) {
    if (!link.is_open()) continue;
    entries.push_back({link.socket.get(), static_cast<short>(link.outbox.empty() ? POLLIN : POLLIN | POLLOUT), 0});
  }
  const int num_ready = ::poll(entries.data(), entries.size(), static_cast<int>(tick_of(timeout_).count()));
  if (num_ready < 0 && errno != EINTR) {
    throw Error(ErrorCode::kSystem, fmt::format("poll failed: {}", std::strerror(errno)));
  }
  std::uint64_t ignored = 0;
  if (entries[0].revents != 0) (void)!::read(wake_, &ignored, sizeof(ignored));
}

// ---- What other hosts say -------------------------------------------------------------------------------------------

void Uplink::hear_all() {
  for (std::size_t host = 0; host < links_.size(); ++host) {
    if (links_[host].is_open()) hear(host);
  }
}

void Uplink::hear(std::size_t host) {
  Link& link = links_[host];
  const ChannelStatus status = read_available(link.socket.get(), link.inbox, kMaxReadBytes);
  if (status == ChannelStatus::kNothing) return;
  link.heard = Clock::now();
  if (std::exchange(link.is_silent, false)) set_states(host, RankState::kHostSilent, RankState::kActive);
  if (!parse(host)) {
    log_error(fmt::format("host {} sent what no host of this version sends", table_.hosts[host].name));
    return lose(host);
  }
  if (status == ChannelStatus::kClosed) lose(host);
}

bool Uplink::parse(std::size_t host) {
  std::string& inbox = links_[host].inbox;
  std::size_t done = 0;
  bool is_sound = true;
  while (is_sound && inbox.size() - done >= sizeof(HostMessageHead)) {
    HostMessageHead head;
    std::memcpy(&head, inbox.data() + done, sizeof(head));
    if (head.num_bytes > max_host_message_bytes(control_.num_ranks())) return false;
    if (inbox.size() - done - sizeof(head) < head.num_bytes) break;
    is_sound = take(host, head, std::string_view(inbox).substr(done + sizeof(head), head.num_bytes));
    if (!links_[host].is_open()) return true;
    done += sizeof(head) + head.num_bytes;
  }
  inbox.erase(0, done);
  return is_sound;
}

bool Uplink::is_rank_of(int rank, std::size_t host) const noexcept {
  return rank >= 0 && rank < control_.num_ranks() &&
         table_.host_of[static_cast<std::size_t>(rank)] == static_cast<int>(host);
}

bool Uplink::take(std::size_t host, const HostMessageHead& head, std::string_view body) {
  const bool names_rank = head.kind == HostMessageKind::kArrived || head.kind == HostMessageKind::kDeparted ||
                          head.kind == HostMessageKind::kProposal;
  if (names_rank && !is_rank_of(head.rank, host)) return false;
  switch (head.kind) {
    case HostMessageKind::kHeartbeat:
      return true;
    case HostMessageKind::kArrived:
      return take_arrived(head, body);
    case HostMessageKind::kDeparted:
      // pairs with GroupImpl::is_lost()
      control_.rank(head.rank).state.store(RankState::kDeparted, std::memory_order_release);
      return true;
    case HostMessageKind::kReport:
      if (head.failure == 0) return false;
      if (host_ == root_host_) control_.decide_under_its_mask(GroupFailure::unpack(head.failure));
      return true;
    case HostMessageKind::kVerdict:
      if (head.failure == 0) return false;
      if (static_cast<int>(host) == root_host_) control_.decide_under_its_mask(GroupFailure::unpack(head.failure));
      return true;
    case HostMessageKind::kProposal:
      return take_proposal(body, control_.rank(head.rank));
    case HostMessageKind::kMask:
      return hear_of_mask(host, head, body);
    case HostMessageKind::kBye:
      lose(host);
      return true;
  }
  return false;
}

bool Uplink::take_arrived(const HostMessageHead& head, std::string_view body) {
  // Of a step under another mask, or of a rank that takes no part in those of this one.
  if (head.failure != quiet_ || mask_.has(head.rank)) return true;
  Barrier& barrier = barriers_[static_cast<std::size_t>(head.rank)];
  const bool is_waiting = std::find(waiting_.begin(), waiting_.end(), head.rank) != waiting_.end();
  if (is_waiting || head.ticket != barrier.next_ticket()) return false;
  if (!take_arrival(body, control_.rank(head.rank), head.ticket)) return false;
  waiting_.push_back(head.rank);
  let_in_waiting();
  return true;
}

void Uplink::let_in_waiting() {
  const auto is_let_in = [this](int rank) {
    Barrier& barrier = barriers_[static_cast<std::size_t>(rank)];
    if (!barrier.passed(barrier.next_ticket() - 1)) return false;
    (void)barrier.arrive();
    return true;
  };
  waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(), is_let_in), waiting_.end());
}

void Uplink::lose(std::size_t host) {
  links_[host].socket.reset();
  links_[host].outbox.clear();
  set_states(host, RankState::kActive, RankState::kHostLost);
  set_states(host, RankState::kHostSilent, RankState::kHostLost);
}

void Uplink::set_states(std::size_t host, RankState from, RankState to) {
  for (const int rank : table_.hosts[host].ranks) {
    RankState expected = from;
    // pairs with GroupImpl::is_lost()
    (void)control_.rank(rank).state.compare_exchange_strong(expected, to, std::memory_order_acq_rel);
  }
}

void Uplink::watch_silence() {
  const Clock::time_point now = Clock::now();
  for (std::size_t host = 0; host < links_.size(); ++host) {
    Link& link = links_[host];
    const bool is_silent = link.is_open() && now - link.heard > longest_silence(timeout_);
    if (!is_silent || link.is_silent) continue;
    link.is_silent = true;
    set_states(host, RankState::kActive, RankState::kHostSilent);
  }
}

// ---- What this host says --------------------------------------------------------------------------------------------

void Uplink::tell_all(const std::string& bytes) {
  for (Link& link : links_) {
    if (link.is_open()) link.outbox += bytes;
  }
}

void Uplink::tell_members(const std::string& bytes) {
  for (std::size_t host = 0; host < links_.size(); ++host) {
    const std::vector<int>& ranks = table_.hosts[host].ranks;
    // One that stands still would leave ever more here.
    const bool takes_part = std::any_of(ranks.begin(), ranks.end(), [this](int rank) { return !mask_.has(rank); });
    if (takes_part && links_[host].is_open()) links_[host].outbox += bytes;
  }
}

void Uplink::tell_arrivals() {
  std::string bytes;
  for (const int rank : own_ranks()) {
    if (mask_.has(rank)) continue;
    Ticket& told = told_arrival_[static_cast<std::size_t>(rank)];
    // A rank is two steps ahead at most: of the third all hosts must have heard of the first, and both slots are whole.
    while (barriers_[static_cast<std::size_t>(rank)].has_arrived(rank, told + 1)) {
      append_arrival(bytes, control_.rank(rank), rank, ++told, quiet_);
    }
  }
  // A rank that arrives under a new mask has seen that this is in force. What was read may be of such a step then, and
  // what it stood for before is of no interest any more.
  if (!bytes.empty() && has_followed_mask()) tell_members(bytes);
}

void Uplink::tell_departures() {
  std::string bytes;
  for (const int rank : own_ranks()) {
    if (told_departure_[static_cast<std::size_t>(rank)]) continue;
    const bool is_gone =
        control_.rank(rank).state.load(std::memory_order_acquire) == RankState::kDeparted || !is_alive_(rank);
    if (!is_gone) continue;
    // What it did before it went goes first.
    tell_arrivals();
    told_departure_[static_cast<std::size_t>(rank)] = true;
    append_message(bytes, {.kind = HostMessageKind::kDeparted, .rank = rank});
  }
  if (!bytes.empty()) tell_all(bytes);
}

void Uplink::tell_failures() {
  const std::optional<GroupFailure> failure = control_.failure_of_any_mask();
  if (failure && failure->mask_number != mask_number()) return;
  if (host_ == root_host_) {
    if (!failure || std::exchange(told_failure_, true)) return;
    std::string bytes;
    append_message(bytes, {.kind = HostMessageKind::kVerdict, .failure = failure->pack()});
    return tell_all(bytes);
  }
  if (failure) return;
  // pairs with GroupImpl::agree_on()
  const std::uint64_t report = control_.group().report.load(std::memory_order_acquire);
  if (report == 0 || GroupFailure::unpack(report).mask_number != mask_number()) return;
  if (!root_is_reachable()) {
    // Every host decides for itself, and all come to what they have lost alike.
    GroupFailure own = GroupFailure::unpack(report);
    if (own.code != ErrorCode::kAborted) {
      own.code = root_link().is_open() ? ErrorCode::kTimeout : ErrorCode::kPeerLost;
      const int leader = table_.hosts[static_cast<std::size_t>(root_host_)].ranks.front();
      own.peer_rank = mask_.has(leader) ? mask_.first_member() : leader;
    }
    control_.decide_under_its_mask(own);
    return;
  }
  if (std::exchange(told_failure_, true)) return;
  append_message(root_link().outbox, {.kind = HostMessageKind::kReport, .failure = report});
}

void Uplink::send_heartbeats() {
  const Clock::time_point now = Clock::now();
  for (Link& link : links_) {
    if (!link.is_open() || !link.outbox.empty()) continue;
    if (now - link.told < std::min(timeout_ / kHeartbeatsPerTimeout, kMaxHeartbeat)) continue;
    append_message(link.outbox, {.kind = HostMessageKind::kHeartbeat});
  }
}

void Uplink::flush() {
  for (Link& link : links_) {
    if (!link.is_open() || link.outbox.empty()) continue;
    link.told = Clock::now();
    // Where nothing can be sent any more, what has come may still be read; hear() sees the end.
    if (write_available(link.socket.get(), link.outbox) == ChannelStatus::kClosed) link.outbox.clear();
  }
}

// ---- The end --------------------------------------------------------------------------------------------------------

bool Uplink::has_finished() const {
  if (control_.failure_of_any_mask()) return true;
  for (const int rank : own_ranks()) {
    if (mask_.has(rank)) continue;
    const Ticket told = told_arrival_[static_cast<std::size_t>(rank)];
    const Barrier& barrier = barriers_[static_cast<std::size_t>(rank)];
    // A rank marks its arrival behind the passing: of a step that has passed here the others have yet to hear.
    if (!barrier.passed(told) || barrier.passed(told + 1)) return false;
  }
  return true;
}

void Uplink::say_goodbye() {
  std::string bytes;
  append_message(bytes, {.kind = HostMessageKind::kBye});
  tell_all(bytes);
  const auto has_more = [](const Link& link) { return link.is_open() && !link.outbox.empty(); };
  for (flush(); std::any_of(links_.begin(), links_.end(), has_more) && Clock::now() < stop_deadline_; flush()) {
    (void)::poll(nullptr, 0, static_cast<int>(kMinTick.count()));
  }
}

}  // namespace epistle
