#include "cuda_soak/soak.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <deque>
#include <vector>

#include <cuda_runtime_api.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "support/cuda_staging.hpp"
#include "support/random_scenario.hpp"
#include "support/scenario_text.hpp"

namespace epistle::testing {
namespace {

constexpr int kTripsPerHandle = 5;
constexpr std::int64_t kTripsPerDispatcher = 50;
constexpr std::size_t kHandlesAlive = 3;
constexpr int kHandlesPerBackward = 5;
/// Enough for every kind of kernel to be loaded, which takes device memory for good.
constexpr std::int64_t kWarmUpDispatchers = 40;
constexpr std::uint64_t kWarmUpSeed = 0x57a4;
constexpr std::int64_t kArenaBytes = std::int64_t{16} << 20;

/// Small, as the time goes into the check on the host.
ScenarioLimits soak_limits(int num_ranks) {
  return {.num_ranks = num_ranks,
          .max_tokens = 48,
          .max_hidden = 512,
          .max_experts = 32,
          .max_top_k = 8,
          .max_elements = 40'000 * static_cast<std::int64_t>(num_ranks)};
}

/// Every rank's rows or scales, changed a little for every repeat.
class Inputs {
 public:
  Inputs(std::vector<std::vector<std::byte>> bytes, std::int64_t row_bytes)
      : bytes_(std::move(bytes)), row_bytes_(row_bytes) {}

  [[nodiscard]] std::int64_t row_bytes() const noexcept { return row_bytes_; }

  [[nodiscard]] std::vector<std::byte> of_rank(int rank, std::byte key) const {
    std::vector<std::byte> changed = bytes_[static_cast<std::size_t>(rank)];
    for (std::byte& value : changed) value ^= key;
    return changed;
  }

  [[nodiscard]] Mismatch check(const Play& play, int rank, const std::byte* rows, std::byte key,
                               const char* what) const {
    const auto source_row = [&](int src_rank, std::int64_t src_token, std::byte* row) {
      const std::byte* const source = bytes_[static_cast<std::size_t>(src_rank)].data() + src_token * row_bytes_;
      for (std::int64_t idx = 0; idx < row_bytes_; ++idx) row[idx] = source[idx] ^ key;
    };
    return play.expectation().check_rows(
        rank, {.rows = rows, .row_bytes = row_bytes_, .range = play.expectation().all_rows(rank), .what = what},
        source_row);
  }

 private:
  std::vector<std::vector<std::byte>> bytes_;
  std::int64_t row_bytes_;
};

Inputs payload_inputs(const Play& play, int num_ranks) {
  std::vector<std::vector<std::byte>> bytes;
  for (int rank = 0; rank < num_ranks; ++rank) bytes.push_back(play.payload(rank));
  return {std::move(bytes), play.row_bytes()};
}

Inputs scale_inputs(const Play& play, int num_ranks) {
  std::vector<std::vector<std::byte>> bytes;
  for (int rank = 0; rank < num_ranks; ++rank) bytes.push_back(play.scales(rank));
  return {std::move(bytes), play.scale_bytes()};
}

/// One dispatcher's share of the soak.
class Stretch {
 public:
  Stretch(Group& group, const SoakOptions& options, std::uint64_t seed)
      : group_(group),
        scenario_(random_scenario(seed, soak_limits(group.size()))),
        dispatcher_("direct", group, scenario_.config, staged_options(options, seed)) {}

  [[nodiscard]] int device() const noexcept { return dispatcher_.inner().device(); }

  void play(std::int64_t num_trips) {
    for (int round = 0; num_trips > 0; ++round) {
      const auto now = std::min<std::int64_t>(num_trips, kTripsPerHandle);
      const Mismatch mismatch = play_handle(round, static_cast<int>(now));
      if (mismatch) {
        throw Error(ErrorCode::kVerificationFailed,
                    fmt::format("rank {}, round {}: {}; {}", group_.rank(), round, *mismatch, to_text(scenario_)));
      }
      num_trips -= now;
    }
  }

 private:
  static StagedOptions staged_options(const SoakOptions& options, std::uint64_t seed) {
    Draw draw(~seed);
    return {.cuda = {.device = options.virtual_ranks ? 0 : -1, .num_sms = static_cast<int>(draw.between(0, 8))},
            .split_halves = draw.one_in(2),
            .arena_bytes = kArenaBytes};
  }

  Mismatch play_handle(int round, int num_trips) {
    const Play play(scenario_, round);
    const int rank = group_.rank();
    handles_.push_back(dispatcher_.prepare(play.table(rank).view()));
    if (handles_.size() > kHandlesAlive) handles_.pop_front();
    const Handle& handle = handles_.back();
    EPISTLE_RETURN_MISMATCH(check_description(play, rank, handle.output()));
    const Inputs payload = payload_inputs(play, group_.size());
    const Inputs scales = scale_inputs(play, group_.size());
    for (int repeat = 0; repeat < num_trips; ++repeat) {
      EPISTLE_RETURN_MISMATCH(play_trip(play, handle, payload, scales, repeat));
    }
    if (play.config().combine_hidden == 0 || round % kHandlesPerBackward != 0) return std::nullopt;
    return check_backward(play, rank, dispatcher_, handle);
  }

  Mismatch play_trip(const Play& play, const Handle& handle, const Inputs& payload, const Inputs& scales, int repeat) {
    const int rank = group_.rank();
    const auto key = static_cast<std::byte>(37 * repeat);
    const std::vector<std::byte> own_rows = payload.of_rank(rank, key);
    const std::vector<std::byte> own_scales = scales.of_rank(rank, key);
    const bool has_scales = scales.row_bytes() > 0;
    const DispatchOutput& output = dispatcher_.dispatch(handle, {.rows = own_rows.data(),
                                                                 .scales = has_scales ? own_scales.data() : nullptr,
                                                                 .num_tokens = play.table(rank).num_tokens});
    EPISTLE_RETURN_MISMATCH(payload.check(play, rank, output.rows, key, "dispatch"));
    if (has_scales) EPISTLE_RETURN_MISMATCH(scales.check(play, rank, output.scales, key, "scales"));
    if (play.config().combine_hidden == 0) return std::nullopt;
    const std::uint64_t stream = 10 + static_cast<std::uint64_t>(repeat);
    const std::vector<std::byte> rows = play.values(stream, rank, output.num_rows);
    if (!scenario_.stage_combine && !rows.empty()) std::memcpy(output.combine_rows, rows.data(), rows.size());
    std::vector<std::byte> out(static_cast<std::size_t>(play.table(rank).num_tokens * play.combine_row_bytes()));
    poison(out.data(), static_cast<std::int64_t>(out.size()));
    dispatcher_.combine(handle, scenario_.stage_combine ? rows.data() : output.combine_rows, out.data(),
                        static_cast<std::int64_t>(out.size()));
    const auto expected = play.combined(stream, rank, play.config().apply_weights);
    return compare_bytes(out.data(), expected.data(), out.size(), "combine");
  }

  Group& group_;
  Scenario scenario_;
  StagedCudaDispatcher dispatcher_;
  std::deque<Handle> handles_;
};

/// Every rank asks while nobody holds or takes memory.
std::int64_t free_device_bytes(Group& group, int device) {
  group.barrier();
  check_cuda(cudaSetDevice(device), "cudaSetDevice");
  check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  std::size_t free_bytes = 0;
  std::size_t total_bytes = 0;
  check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
  group.barrier();
  return static_cast<std::int64_t>(free_bytes);
}

/// The `idx`-th dispatcher of a soak. An error says which one that was, so that the soak can be started there.
void play_stretch(Group& group, const SoakOptions& options, std::int64_t idx, std::int64_t num_trips) {
  const std::uint64_t seed = mix(options.seed, static_cast<std::uint64_t>(idx));
  try {
    Stretch(group, options, seed).play(num_trips);
  } catch (const Error& error) {
    throw Error(error.code(),
                fmt::format("dispatcher {} ({}): {}", idx, to_text(random_scenario(seed, soak_limits(group.size()))),
                            error.what()),
                error.context());
  }
}

}  // namespace

SoakResult soak_rank(Group& group, const SoakOptions& options, const SoakProgress& progress) {
  int device = 0;
  for (std::int64_t idx = 0; idx < kWarmUpDispatchers; ++idx) {
    Stretch stretch(group, options, mix(kWarmUpSeed, static_cast<std::uint64_t>(idx)));
    device = stretch.device();
    stretch.play(1);
  }
  SoakResult result;
  result.free_before_bytes = free_device_bytes(group, device);
  while (result.num_round_trips < options.num_round_trips) {
    const std::int64_t now = std::min(kTripsPerDispatcher, options.num_round_trips - result.num_round_trips);
    play_stretch(group, options, options.first_dispatcher + result.num_dispatchers, now);
    ++result.num_dispatchers;
    result.num_round_trips += now;
    if (group.rank() == 0) progress(result.num_round_trips);
  }
  result.free_after_bytes = free_device_bytes(group, device);
  return result;
}

}  // namespace epistle::testing
