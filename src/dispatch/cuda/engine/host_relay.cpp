#include "dispatch/cuda/engine/host_relay.hpp"

#include <algorithm>

#include "dispatch/cuda/engine/buffer_carver.hpp"
#include "dispatch/cuda/engine/sizes.hpp"
#include "dispatch/link/link_memory.hpp"
#include "gpu/cuda_error.hpp"

namespace epistle::cuda {
namespace {

/// The steps between the runs of a prepare.
constexpr Call kTellOthers{.kind = CallKind::kPrepare};

constexpr auto kWordBytes = static_cast<std::int64_t>(sizeof(std::uint64_t));

}  // namespace

HostRelay::HostRelay(EngineContext& context)
    : context_(context),
      plan_(plan_relay(context.layout())),
      memory_(*context.group, plan_),
      link_(open_domain_link(*context.group, memory_.region())),
      traffic_(*context.group, context.group->gpu_domains(), *link_, plan_, memory_) {
  for (int rank = 0; rank < context.num_ranks(); ++rank) {
    if (!is_elsewhere(rank)) continue;
    if (elsewhere_.empty() || elsewhere_.back().end != rank) elsewhere_.push_back({rank, rank});
    elsewhere_.back().end = rank + 1;
  }
  context.group->take_together(kGpuSetUp, Phase::kCreate, [this] { take_memory(); });
  expose_landing_places(*link_, plan_, memory_);
}

void HostRelay::take_memory() {
  const DeviceGuard guard(context_.device);
  word_memory_ =
      PinnedMemory::carve([this](BufferCarver& carver) { carve_relay_words(carver, context_.control, words_); });
  counters_ = context_.own_memory.take(relay_counter_bytes(context_.config));
}

std::int64_t HostRelay::outcome_bytes() const noexcept {
  return context_.control.outcome_entries() * static_cast<std::int64_t>(sizeof(std::int32_t));
}

std::int64_t HostRelay::tokens(int source, int destination) const noexcept {
  return counts_[static_cast<std::size_t>(source) * static_cast<std::size_t>(context_.control.count_columns()) +
                 static_cast<std::size_t>(destination)];
}

HostRelay::Records HostRelay::records(int source, int destination) const noexcept {
  Records found;
  for (int before = 0; before < source; ++before) found.begin += tokens(before, destination);
  std::int64_t end = found.begin + tokens(source, destination);
  // Of token rows beyond the capacity there are no records.
  const LayoutParams& params = context_.layout().params();
  if (context_.layout().token_major() && params.sizing == SizingMode::kCapacity) {
    found.begin = std::min(found.begin, params.capacity_rows);
    end = std::min(end, params.capacity_rows);
  }
  found.count = end - found.begin;
  return found;
}

bool HostRelay::is_refused() const noexcept {
  const int columns = context_.control.count_columns();
  for (int rank = 0; rank < context_.num_ranks(); ++rank) {
    if (tokens(rank, columns - 1) != 0) return true;
  }
  return false;
}

std::int64_t HostRelay::header_bytes(const CudaHandleState& handle) const noexcept {
  const auto found = sent_.find(&handle);
  return found != sent_.end() && found->second.prepare_id == handle.prepare_id ? found->second.num_bytes : 0;
}

void HostRelay::copy(void* to, const void* from, std::int64_t num_bytes, const char* what) const {
  if (num_bytes == 0) return;
  check_cuda(cudaMemcpyAsync(to, from, static_cast<std::size_t>(num_bytes), cudaMemcpyDefault, context_.stream), what);
}

void HostRelay::prepare(const CudaHandleState& handle, const PrepareArgs& args, const Launch& launch) {
  PrepareArgs early = args;
  early.prepare_id = 0;  // of no handle: the host takes its summary for none
  early.expert_tokens = reinterpret_cast<unsigned long long*>(counters_.get());
  counts_.clear();
  Complaint complaint = attempt([&] {
    context_.wait();
    run(early, launch);
  });
  std::vector<std::int32_t> own(static_cast<std::size_t>(context_.control.count_columns()));
  if (!complaint) complaint = attempt([&] { own = read_own_counts(); });
  // Behind this step nobody's GPU reads any more what links put to.
  (void)context_.group->agree(kTellOthers, Phase::kLayout, complaint);
  counts_.resize(own.size() * static_cast<std::size_t>(context_.num_ranks()));
  context_.group->all_gather(own.data(), own.size() * sizeof(own[0]), counts_.data(), Phase::kLayout);
  Sent sent{.prepare_id = handle.prepare_id};
  if (!is_refused()) {
    complaint = attempt([&] {
      run(early, launch);
      pack();
    });
    (void)context_.group->agree(kTellOthers, Phase::kLayout, complaint);
    sent.num_bytes = put();
    await();
    complaint = attempt([&] { unpack(); });
    (void)context_.group->agree(kTellOthers, Phase::kLayout, complaint);
  }
  sent_[&handle] = sent;
  run(args, launch);
}

// ---- Runs -----------------------------------------------------------------------------------------------------------

constexpr const char* kTelling = "telling a GPU what ranks of other hosts have told";

/// Nothing on the stream reads the words of the run before any more.
void HostRelay::stand_in(std::uint64_t word) {
  const DeviceControl& control = context_.control;
  const std::uint32_t epoch = epoch_of(word);
  std::fill_n(words_.ready, control.num_ranks, word);
  std::fill_n(words_.done, control.num_ranks, (std::uint64_t{epoch} << 32) | 1U);  // by one block
  std::byte* const own = control_of(context_.rank());
  const std::int64_t ready_offset = control.ready_offset() + (epoch & 1U) * control.num_ranks * kWordBytes;
  for (const Span& span : elsewhere_) {
    const std::int64_t num_ranks = span.end - span.begin;
    copy(own + ready_offset + span.begin * kWordBytes, words_.ready + span.begin, num_ranks * kWordBytes, kTelling);
    constexpr auto kPitch = static_cast<std::size_t>(DeviceControl::kMaxBlocks * kWordBytes);
    check_cuda(cudaMemcpy2DAsync(own + control.done_offset() + span.begin * static_cast<std::int64_t>(kPitch), kPitch,
                                 words_.done + span.begin, sizeof(std::uint64_t), sizeof(std::uint64_t),
                                 static_cast<std::size_t>(num_ranks), cudaMemcpyHostToDevice, context_.stream),
               kTelling);
  }
}

void HostRelay::answer(DeviceCall call, const CudaHandleState& handle) {
  copy(words_.prepared, &handle.arrays.totals->prepared, sizeof(*words_.prepared), "reading the number of a handle");
  const std::uint32_t epoch = read_epoch();
  stand_in(call_word(epoch, call, *words_.prepared));
}

void HostRelay::run(const PrepareArgs& args, const Launch& launch) {
  const DeviceControl& control = context_.control;
  const std::uint32_t epoch = read_epoch();
  stand_in(call_word(epoch, args.call, 0));
  const std::int64_t columns = control.count_columns();
  const std::int64_t words_of_rank = control.count_blocks * columns;
  std::fill_n(words_.counts, control.num_ranks * words_of_rank, std::uint64_t{epoch} << 32);
  for (int rank = 0; rank < control.num_ranks && !counts_.empty(); ++rank) {
    // As if the first block had counted all.
    for (std::int64_t column = 0; column < columns; ++column) {
      words_.counts[rank * words_of_rank + column] |=
          static_cast<std::uint32_t>(tokens(rank, static_cast<int>(column)));
    }
  }
  for (const Span& span : elsewhere_) {
    const std::int64_t begin = span.begin * words_of_rank;
    copy(control_of(context_.rank()) + control.counts_offset() + begin * kWordBytes, words_.counts + begin,
         (span.end - span.begin) * words_of_rank * kWordBytes, kTelling);
  }
  launch(args);
}

/// Of the next call.
std::uint32_t HostRelay::read_epoch() {
  copy(words_.completed, &context_.device_group.local->epoch, kWordBytes, "reading the number of the next call");
  context_.wait();
  return static_cast<std::uint32_t>(*words_.completed + 1);
}

std::vector<std::int32_t> HostRelay::read_own_counts() {
  const DeviceControl& control = context_.control;
  const std::int64_t columns = control.count_columns();
  const std::int64_t words_of_rank = control.count_blocks * columns;
  std::uint64_t* const words = words_.counts + context_.rank() * words_of_rank;
  context_.wait();
  copy(words, control_of(context_.rank()) + control.counts_offset() + context_.rank() * words_of_rank * kWordBytes,
       words_of_rank * kWordBytes, "reading what a GPU has counted");
  context_.wait();
  std::vector<std::int32_t> counts(static_cast<std::size_t>(columns), 0);
  for (std::int64_t word = 0; word < words_of_rank; ++word) {
    counts[static_cast<std::size_t>(word % columns)] += static_cast<std::int32_t>(words[word] & 0xffffffffU);
  }
  return counts;
}

// ---- Records --------------------------------------------------------------------------------------------------------

/// From the mirrors, those for one rank behind those for another. Waits.
void HostRelay::pack() {
  std::byte* const rows = memory_.section(context_.rank(), BufferSection::kSendRows);
  std::byte* const outcomes = memory_.section(context_.rank(), BufferSection::kSendScales);
  constexpr const char* kWhat = "reading records for ranks of other hosts";
  std::int64_t packed = 0;
  for (const Span& span : elsewhere_) {
    for (int peer = span.begin; peer < span.end; ++peer) {
      const Records found = records(context_.rank(), peer);
      copy(rows + packed * record_bytes(), records_of(peer) + found.begin * record_bytes(),
           found.count * record_bytes(), kWhat);
      packed += found.count;
      if (!tells_outcomes()) continue;
      copy(outcomes + peer * outcome_bytes(),
           control_of(peer) + context_.control.outcomes_offset() + context_.rank() * outcome_bytes(), outcome_bytes(),
           kWhat);
    }
  }
  context_.wait();
}

/// Returns how many bytes.
std::int64_t HostRelay::put() {
  std::int64_t packed = 0;
  std::int64_t num_bytes = 0;
  for (const Span& span : elsewhere_) {
    for (int peer = span.begin; peer < span.end; ++peer) {
      const Records found = records(context_.rank(), peer);
      if (!tells(context_.rank(), peer)) continue;
      traffic_.put({.peer = peer,
                    .from_row = packed,
                    .to_row = found.begin,
                    .num_rows = found.count,
                    .row_bytes = record_bytes()});
      packed += found.count;
      num_bytes += found.count * record_bytes();
      if (tells_outcomes()) {
        traffic_.put({.peer = peer,
                      .from = BufferSection::kSendScales,
                      .to = BufferSection::kStageScales,
                      .from_row = peer,
                      .to_row = context_.rank(),
                      .num_rows = 1,
                      .row_bytes = outcome_bytes()});
        num_bytes += outcome_bytes();
      }
      traffic_.signal(peer);
    }
  }
  return num_bytes;
}

void HostRelay::await() {
  for (const Span& span : elsewhere_) {
    for (int peer = span.begin; peer < span.end; ++peer) {
      if (!tells(peer, context_.rank())) continue;
      traffic_.wait_for(peer, 1, Phase::kLayout);
      traffic_.take(peer, 1);
    }
  }
  traffic_.flush(Phase::kLayout);
}

/// To where the kernel looks for them.
void HostRelay::unpack() {
  const std::byte* const landed = memory_.section(context_.rank(), BufferSection::kStageRows);
  const std::byte* const outcomes = memory_.section(context_.rank(), BufferSection::kStageScales);
  constexpr const char* kWhat = "bringing records of ranks of other hosts to the GPU";
  for (const Span& span : elsewhere_) {
    const std::int64_t begin = records(span.begin, context_.rank()).begin;
    const Records last = records(span.end - 1, context_.rank());
    copy(records_of(context_.rank()) + begin * record_bytes(), landed + begin * record_bytes(),
         (last.begin + last.count - begin) * record_bytes(), kWhat);
    if (!tells_outcomes()) continue;
    copy(control_of(context_.rank()) + context_.control.outcomes_offset() + span.begin * outcome_bytes(),
         outcomes + span.begin * outcome_bytes(), (span.end - span.begin) * outcome_bytes(), kWhat);
  }
}

}  // namespace epistle::cuda
