#include <algorithm>
#include <atomic>
#include <limits>
#include <optional>
#include <utility>
#include <variant>

#include <fmt/format.h>

#include "epistle/migration.hpp"

#include "balance/copy_list.hpp"
#include "core/complaint.hpp"
#include "core/reject.hpp"
#include "group/group_impl.hpp"
#include "migrate/copier.hpp"
#include "migrate/host_weights.hpp"
#include "migrate/rounds.hpp"
#include "migrate/stages.hpp"
#include "migrate/verdict.hpp"
#include "migrate/weight_memory.hpp"

namespace epistle {
namespace {

using migrate::Control;
using migrate::Places;
using migrate::Round;
using migrate::RoundNumber;
using migrate::Verdict;
using SlotExperts = std::vector<std::vector<std::int32_t>>;

constexpr std::int64_t kPageBytes = 4096;
constexpr std::int64_t kMaxStoreBytes = std::int64_t{1} << 46;
constexpr std::int32_t kMinSpareSlots = 2;
constexpr Call kCreateStore{.kind = CallKind::kCreateWeightStore};
constexpr Call kBegin{.kind = CallKind::kBeginMigration};

static_assert(kNoExpert == balance::kEmptySlot);

constexpr std::int64_t whole_pages(std::int64_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

/// Tells whether ranks say the same (FNV-1a); not against malice.
class Digest {
 public:
  void add(std::int64_t value) noexcept {
    for (int byte = 0; byte < 8; ++byte) {
      state_ = (state_ ^ (static_cast<std::uint64_t>(value) >> (8 * byte) & 0xffU)) * 0x100000001b3ULL;
    }
  }
  template <typename Value>
  void add(const std::vector<Value>& values) noexcept {
    add(static_cast<std::int64_t>(values.size()));
    for (const Value& value : values) add(value);
  }
  [[nodiscard]] std::uint64_t value() const noexcept { return state_; }

 private:
  std::uint64_t state_ = 0xcbf29ce484222325ULL;
};

balance::SlotTable table_of(const SlotExperts& slot_experts) {
  balance::SlotTable table;
  table.begin.push_back(0);
  for (const std::vector<std::int32_t>& slots : slot_experts) {
    table.expert.insert(table.expert.end(), slots.begin(), slots.end());
    table.begin.push_back(table.num_slots());
  }
  return table;
}

void check_table(const SlotExperts& slot_experts, std::int32_t num_experts, const balance::Cluster& cluster) {
  table_of(slot_experts).check(num_experts, cluster);
  for (std::size_t rank = 0; rank < slot_experts.size(); ++rank) {
    std::vector<std::int32_t> held = slot_experts[rank];
    std::sort(held.begin(), held.end());
    const auto twice = std::adjacent_find(held.begin(), held.end(),
                                          [](std::int32_t a, std::int32_t b) { return a == b && a != kNoExpert; });
    if (twice != held.end()) {
      reject(fmt::format("the placement gives rank {} expert {} twice; a rank holds an expert once", rank, *twice));
    }
  }
}

balance::Cluster cluster_of(const WeightStoreConfig& config) {
  balance::Cluster cluster;
  for (const std::vector<std::int32_t>& slots : config.slot_experts) {
    cluster.slots_of_rank.push_back(static_cast<std::int32_t>(slots.size()));
  }
  cluster.domain_of_rank = config.domain_of_rank;
  return cluster;
}

void check_config(const WeightStoreConfig& config, int num_ranks) {
  if (static_cast<int>(config.slot_experts.size()) != num_ranks) {
    reject(fmt::format("slot_experts are of {} ranks, expected {}", config.slot_experts.size(), num_ranks));
  }
  const balance::Cluster cluster = cluster_of(config);
  cluster.check(config.num_experts);
  check_table(config.slot_experts, config.num_experts, cluster);
  if (config.spare_slots < kMinSpareSlots) {
    reject(fmt::format("{} spare slots, expected {} or more", config.spare_slots, kMinSpareSlots));
  }
  if (config.chunk_bytes < 1) reject(fmt::format("chunks of {} bytes, expected 1 or more", config.chunk_bytes));
  if (config.max_bytes_per_s < 0) {
    reject(fmt::format("{} bytes per second, expected 0 (no limit) or more", config.max_bytes_per_s));
  }
  if (config.bytes_per_advance < 0) {
    reject(fmt::format("{} bytes per advance, expected 0 (a thread copies) or more", config.bytes_per_advance));
  }
  if (config.bytes_per_advance > 0 && config.max_bytes_per_s > 0) {
    reject("bytes_per_advance and max_bytes_per_s are both given; the rate is that of a thread, so give one of them");
  }
  const std::int64_t max_places =
      *std::max_element(cluster.slots_of_rank.begin(), cluster.slots_of_rank.end()) + std::int64_t{config.spare_slots};
  if (config.expert_bytes < 1 || config.expert_bytes > kMaxStoreBytes / max_places) {
    reject(fmt::format("{} bytes per expert in {} places, expected 1 byte to {}", config.expert_bytes, max_places,
                       kMaxStoreBytes / max_places));
  }
}

std::uint64_t digest_of(const WeightStoreConfig& config, bool is_on_gpu) {
  Digest digest;
  digest.add(std::int64_t{is_on_gpu});
  digest.add(config.num_experts);
  digest.add(config.expert_bytes);
  digest.add(config.slot_experts);
  digest.add(config.domain_of_rank);
  digest.add(config.spare_slots);
  return digest.value();
}

/// All ranks say the same and nobody complains, or all throw.
void agree_on_same(GroupImpl& group, const Call& call, std::uint64_t digest, const char* what,
                   const Complaint& complaint) {
  const std::vector<std::uint64_t> all = group.gather(call, Phase::kCreate, digest, complaint);
  const auto other = std::find_if(all.begin(), all.end(), [&](std::uint64_t value) { return value != all.front(); });
  if (other == all.end()) return;
  const auto peer = static_cast<int>(other - all.begin());
  throw AgreedError(
      ErrorCode::kShapeMismatch,
      fmt::format("rank {} gives another {} than rank 0; give the same on all ranks; nothing was moved", peer, what),
      {.rank = group.rank(), .peer_rank = peer, .phase = Phase::kCreate});
}

/// Weights are read where the other ranks have them.
void check_one_host(const GroupImpl& group) {
  if (group.num_hosts() == 1) return;
  throw Error(
      ErrorCode::kUnsupported,
      fmt::format("weights move between ranks that share memory, and the {} ranks of this group are on {} hosts; "
                  "form a group of the ranks of one host",
                  group.num_ranks(), group.num_hosts()));
}

}  // namespace

class WeightStore::Impl {
 public:
  Impl(std::shared_ptr<GroupImpl> group, const WeightStoreConfig& config, const DeviceOptions& options)
      : group_(std::move(group)),
        mask_version_(group_->mask_version()),
        config_(config),
        is_on_gpu_(std::holds_alternative<CudaOptions>(options)) {
    agree_on_same(*group_, kCreateStore, digest_of(config, is_on_gpu_), "configuration of the weights", attempt([&] {
      check_config(config, group_->num_ranks());
      check_one_host(*group_);
      if (is_on_gpu_ && config.bytes_per_advance > 0) {
        reject("bytes_per_advance is for weights on the host; those on GPUs are moved by copy engines: leave it at 0");
      }
    }));
    cluster_ = cluster_of(config);
    stride_ = whole_pages(config.expert_bytes);
    const std::int64_t control_bytes = whole_pages(sizeof(Control));
    std::vector<std::int64_t> weight_bytes;
    for (const std::int32_t slots : cluster_.slots_of_rank) {
      weight_bytes.push_back((std::int64_t{slots} + config_.spare_slots) * stride_);
    }
    const std::int64_t most = *std::max_element(weight_bytes.begin(), weight_bytes.end());
    region_ = group_->create_region(control_bytes + (is_on_gpu_ ? 0 : most));
    const std::int64_t own_bytes =
        control_bytes + (is_on_gpu_ ? 0 : weight_bytes[static_cast<std::size_t>(group_->rank())]);
    group_->ask_for_memory(own_bytes, Phase::kCreate);
    group_->take_together(kCreateStore, Phase::kCreate, [&] { region_.commit(0, own_bytes); });
    if (is_on_gpu_) {
      memory_ = migrate::make_gpu_weights(*group_, std::get<CudaOptions>(options), weight_bytes);
    } else {
      memory_ = std::make_unique<migrate::HostWeights>(region_, control_bytes, config.low_priority);
    }
    take(Places::from(table_of(config.slot_experts)));
  }

  ~Impl() {
    (void)cancel();
    copier_.stop();
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  [[nodiscard]] const Placement& placement() const noexcept { return placement_; }

  [[nodiscard]] std::span<std::byte> weights(std::int32_t local_slot) const {
    if (local_slot < 0 || static_cast<std::size_t>(local_slot) >= usable_.size()) {
      reject(fmt::format("slot {} of rank {}, expected 0 to {}", local_slot, group_->rank(),
                         static_cast<std::int64_t>(usable_.size()) - 1));
    }
    return {address(group_->rank(), usable_[static_cast<std::size_t>(local_slot)].place),
            static_cast<std::size_t>(config_.expert_bytes)};
  }

  bool begin(const SlotExperts& slot_experts) {
    if (is_active() && control(0).verdict(round_) == Verdict::kStay) end(MigrationState::kCancelled);
    const Complaint complaint = attempt([&] {
      check_mask();
      if (is_active()) reject("a migration runs already; call advance() until it is done, or cancel() it");
      check_table(slot_experts, config_.num_experts, cluster_);
    });
    Digest digest;
    digest.add(slot_experts);
    // The thread has stopped before others can be told to write to what it reads.
    if (!complaint) copier_.stop();
    agree_on_same(*group_, kBegin, digest.value(), "placement to migrate to", complaint);
    return start(table_of(slot_experts));
  }

  void check_mask() const {
    if (group_->mask_version() == mask_version_) return;
    throw Error(
        ErrorCode::kUnsupported,
        "the mask of the group was changed after these weights were shared, and not all ranks may have them any "
        "more; make another store and fill it",
        {.rank = group_->rank()});
  }

  bool advance(Stream stream) {
    if (!is_on_gpu_ && stream.get() != nullptr) reject("a stream is given, and the weights lie on the host; give none");
    if (!is_active()) return false;
    if (group_->failed()) {
      settle();
      group_->check_usable();
    }
    if (config_.bytes_per_advance > 0) copier_.copy_some(config_.bytes_per_advance);
    if (is_on_gpu_) agreement_.count(control(group_->rank()).steps());
    if (group_->rank() == 0) announce();
    Control& shared = control(0);
    if (shared.verdict(round_) == Verdict::kStay) return end_cancelled();
    if (!is_here(shared)) return false;
    if (is_on_gpu_) memory_->free_behind(stream);
    migrate::reach(migrate::Stage::kDeciding, round_);
    if (shared.decide(round_, Verdict::kSwitch) == Verdict::kStay) return end_cancelled();
    migrate::reach(migrate::Stage::kDecided, round_);
    switch_round();
    return true;
  }

  bool cancel() noexcept {
    if (!is_active()) return false;
    if (control(0).decide(round_, Verdict::kStay) == Verdict::kSwitch) return false;
    copier_.ask_to_stop();
    return true;
  }

  void settle() {
    if (group_->health().code == ErrorCode::kOk) reject("the group is sound; settle() is for after its failure");
    copier_.ask_to_stop();
    // Who has decided to switch may have gone on before the group failed.
    while (is_active()) {
      if (control(0).decide(round_, Verdict::kStay) == Verdict::kSwitch) {
        switch_round();
      } else {
        end(MigrationState::kCancelled);
      }
    }
    copier_.stop();
  }

  [[nodiscard]] MigrationStatus status() const noexcept {
    return {.state = state_,
            .num_rounds = static_cast<std::int32_t>(rounds_.size()),
            .rounds_done = static_cast<std::int32_t>(num_done_),
            .bytes_into_rank = bytes_into_rank_,
            .bytes_copied = copier_.bytes_copied()};
  }

 private:
  [[nodiscard]] Control& control(int rank) const noexcept {
    return *std::launder(reinterpret_cast<Control*>(region_.base(rank)));
  }
  [[nodiscard]] std::byte* address(int rank, std::int32_t place) const noexcept {
    return memory_->base(rank) + place * stride_;
  }
  [[nodiscard]] bool is_active() const noexcept { return state_ == MigrationState::kCopying; }

  void take(Places places) {
    places_ = std::move(places);
    placement_ = places_.placement(config_.num_experts, generation_);
    usable_ = places_.usable_of(group_->rank());
  }

  bool start(balance::SlotTable target) {
    // Where a migration was cancelled, slots hold what its complete rounds have brought.
    balance::SlotTable now = target;
    for (std::size_t rank = 0, slot = 0; rank < places_.slots.size(); ++rank) {
      for (const migrate::Held& held : places_.slots[rank]) now.expert[slot++] = held.expert;
    }
    const auto steps = balance::list_copies(now, target, config_.num_experts, cluster_, config_.expert_bytes);
    rounds_ = migrate::plan_rounds(places_, target, steps, config_.spare_slots);
    num_done_ = 0;
    bytes_into_rank_ = 0;
    if (rounds_.empty()) {
      state_ = MigrationState::kDone;
      return false;
    }
    begin_round();
    state_ = MigrationState::kCopying;
    migrate::reach(migrate::Stage::kBegun, round_);
    start_copier();
    return true;
  }

  void begin_round() {
    ++round_;
    agreement_.begin(round_, control(group_->rank()).steps());
  }

  /// Of the copying thread.
  void fail(RoundNumber round, const Error& error) noexcept {
    failure_ = error;
    has_failed_.store(true, std::memory_order_release);
    (void)control(0).decide(round, Verdict::kStay);
  }

  [[nodiscard]] auto steps_of_ranks() const noexcept {
    return [this](int rank) -> migrate::StepWords& { return control(rank).steps(); };
  }

  /// Whether all ranks switch between the same two steps as these.
  [[nodiscard]] bool is_here(Control& shared) {
    if (is_on_gpu_) {
      return agreement_.pass(group_->rank(), group_->num_ranks(), shared.verdict(round_) == Verdict::kSwitch,
                             steps_of_ranks()) == migrate::StepAgreement::Answer::kSwitchHere;
    }
    const std::optional<Ticket> ticket = shared.announced(round_);
    return ticket && static_cast<std::int32_t>(group_->next_ticket() - *ticket) >= 0;
  }

  void start_copier() {
    migrate::Copier::Rounds jobs;
    for (const Round& round : rounds_) {
      std::vector<migrate::CopyJob>& own = jobs.emplace_back();
      for (const migrate::Pull& pull : round.pulls) {
        if (pull.destination.rank != group_->rank()) continue;
        own.push_back({.source = address(pull.source.rank, pull.source.local_slot),
                       .destination = address(pull.destination.rank, pull.destination.local_slot),
                       .num_bytes = config_.expert_bytes});
        bytes_into_rank_ += config_.expert_bytes;
      }
    }
    const RoundNumber first = round_;
    has_failed_ = false;
    Control* const own = &control(group_->rank());
    const auto number = [first](std::size_t round_idx) { return first + static_cast<RoundNumber>(round_idx); };
    copier_.start(
        std::move(jobs),
        {.chunk_bytes = config_.chunk_bytes,
         .max_bytes_per_s = config_.max_bytes_per_s,
         .has_thread = config_.bytes_per_advance == 0},
        *memory_,
        {.on_first_chunk =
             [number](std::size_t round_idx) { migrate::reach(migrate::Stage::kCopying, number(round_idx)); },
         .on_copied =
             [number, own](std::size_t round_idx) {
               migrate::reach(migrate::Stage::kCopied, number(round_idx));
               own->report(number(round_idx));
               migrate::reach(migrate::Stage::kReported, number(round_idx));
             },
         .on_failure = [this, number](std::size_t round_idx, const Error& error) { fail(number(round_idx), error); }});
  }

  /// Of rank 0. A rank whose next step is `ticket + 2` has passed that of `ticket`, which this rank enters only after
  /// it has written the announcement: so all ranks see it there, and the ranks are at the same place of their program.
  void announce() {
    Control& shared = control(0);
    if (!is_on_gpu_ && shared.announced(round_)) return;
    for (int rank = 0; rank < group_->num_ranks(); ++rank) {
      if (!control(rank).has_copied(round_)) return;
    }
    if (!is_on_gpu_) {
      shared.announce(round_, group_->next_ticket() + 2);
    } else if (!agreement_.propose(group_->num_ranks(), steps_of_ranks())) {
      return;
    }
    migrate::reach(migrate::Stage::kAnnounced, round_);
  }

  void switch_round() {
    ++generation_;
    take(std::move(rounds_[num_done_].after));
    ++num_done_;
    migrate::reach(migrate::Stage::kSwitched, round_);
    if (num_done_ == rounds_.size()) {
      state_ = MigrationState::kDone;
      return;
    }
    begin_round();
    copier_.go_on();
  }

  /// Returns false, or throws what has gone wrong with a copy of this rank.
  bool end_cancelled() {
    end(MigrationState::kCancelled);
    if (has_failed_.load(std::memory_order_acquire)) throw Error(*failure_);
    return false;
  }

  void end(MigrationState state) noexcept {
    copier_.ask_to_stop();
    state_ = state;
  }

  std::shared_ptr<GroupImpl> group_;
  std::uint64_t mask_version_;  ///< of the group as the weights were shared
  WeightStoreConfig config_;
  balance::Cluster cluster_;
  std::int64_t stride_ = 0;  ///< from place to place
  bool is_on_gpu_;
  SymmetricRegion region_;
  std::unique_ptr<migrate::WeightMemory> memory_;
  Places places_;
  Placement placement_;
  std::vector<migrate::Held> usable_;  ///< of this rank, by local slot of the placement
  std::uint64_t generation_ = 1;
  RoundNumber round_ = 0;  ///< at hand, or the last one
  std::vector<Round> rounds_;
  std::size_t num_done_ = 0;
  std::int64_t bytes_into_rank_ = 0;
  MigrationState state_ = MigrationState::kIdle;
  migrate::StepAgreement agreement_;
  std::optional<Error> failure_;  ///< of a copy
  std::atomic<bool> has_failed_{false};
  migrate::Copier copier_;
};

WeightStore::WeightStore(Group& group, const WeightStoreConfig& config, const DeviceOptions& options)
    : impl_(std::make_unique<Impl>(group.share(), config, options)) {}
WeightStore::~WeightStore() = default;
WeightStore::WeightStore(WeightStore&&) noexcept = default;
WeightStore& WeightStore::operator=(WeightStore&&) noexcept = default;

const Placement& WeightStore::placement() const noexcept { return impl_->placement(); }
std::span<std::byte> WeightStore::weights(std::int32_t local_slot) const { return impl_->weights(local_slot); }
bool WeightStore::begin(const std::vector<std::vector<std::int32_t>>& slot_experts) {
  return impl_->begin(slot_experts);
}
bool WeightStore::advance(Stream stream) { return impl_->advance(stream); }
bool WeightStore::cancel() noexcept { return impl_->cancel(); }
void WeightStore::settle() { impl_->settle(); }
MigrationStatus WeightStore::status() const noexcept { return impl_->status(); }

}  // namespace epistle
