#include "cuda_soak/soak.hpp"

#include <algorithm>
#include <cstddef>
#include <deque>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "support/cuda_memory.hpp"
#include "support/player.hpp"
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
class ChangingInputs {
 public:
  ChangingInputs(std::vector<std::vector<std::byte>> bytes, std::int64_t row_bytes)
      : bytes_(std::move(bytes)), row_bytes_(row_bytes) {}

  [[nodiscard]] std::int64_t row_bytes() const noexcept { return row_bytes_; }

  [[nodiscard]] std::vector<std::byte> of_rank(int rank, std::byte key) const {
    std::vector<std::byte> changed = bytes_[static_cast<std::size_t>(rank)];
    for (std::byte& value : changed) value ^= key;
    return changed;
  }

  [[nodiscard]] Mismatch check(const Checker& checker, int rank, const std::byte* rows, std::byte key,
                               const char* what) const {
    const auto source_row = [&](int src_rank, std::int64_t src_token, std::byte* row) {
      const std::byte* const source = bytes_[static_cast<std::size_t>(src_rank)].data() + src_token * row_bytes_;
      for (std::int64_t idx = 0; idx < row_bytes_; ++idx) row[idx] = source[idx] ^ key;
    };
    const Expectation& expectation = checker.expectation();
    return expectation.check_rows(
        rank, {.rows = rows, .row_bytes = row_bytes_, .range = expectation.all_rows(rank), .what = what}, source_row);
  }

 private:
  std::vector<std::vector<std::byte>> bytes_;
  std::int64_t row_bytes_;
};

/// What of a random scenario the dispatcher has.
Scenario soak_scenario(const SoakOptions& options, std::uint64_t seed) {
  Scenario scenario = random_scenario(seed, soak_limits(options.num_ranks));
  const DispatcherInfo& info = find_dispatcher(options.dispatcher, Device::kCuda);
  if (!info.capabilities().device_token_count) scenario.counted = -1.0;
  if (info.cannot_serve(scenario.config, options.num_ranks)) scenario.config.order = SumOrder::kHierarchical;
  return scenario;
}

/// One dispatcher's share of the soak.
class Stretch {
 public:
  Stretch(Group& group, const SoakOptions& options, std::uint64_t seed)
      : group_(group),
        scenario_(soak_scenario(options, seed)),
        subject_(group, options.dispatcher, scenario_.config, subject_options(options, seed)) {}

  [[nodiscard]] int device() { return subject_.dispatcher().device_ordinal(); }

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
  static SubjectOptions subject_options(const SoakOptions& options, std::uint64_t seed) {
    Draw draw(~seed);
    const CudaOptions cuda{.device = options.virtual_ranks ? 0 : -1, .num_sms = static_cast<int>(draw.between(0, 8))};
    return on_cuda(cuda, draw.one_in(2), kArenaBytes);
  }

  Mismatch play_handle(int round_idx, int num_trips) {
    const Round round(scenario_, round_idx);
    place_for_round(subject_, round, round_idx);
    const Checker checker(round);
    RankInputs inputs(round, group_.rank());
    handles_.push_back(subject_.prepare(inputs.prepare()));
    if (handles_.size() > kHandlesAlive) handles_.pop_front();
    const Handle& handle = handles_.back();
    EPISTLE_RETURN_MISMATCH(checker.check_description(group_.rank(), subject_.read(handle).get()));
    const ChangingInputs payload(round.payloads(), round.row_bytes());
    const ChangingInputs scales(round.all_scales(), round.scale_row_bytes());
    // The first dispatch tells where the rows will be; the others have to write them.
    Received received = subject_.dispatch(inputs.dispatch(handle));
    for (int repeat = 0; repeat < num_trips; ++repeat) {
      subject_.poison_and_release(received);
      EPISTLE_RETURN_MISMATCH(play_trip(checker, inputs, handle, payload, scales, repeat, received));
    }
    if (!round.combines() || round_idx % kHandlesPerBackward != 0) return std::nullopt;
    return check_backward(subject_, checker, inputs, handle, received);
  }

  Mismatch play_trip(const Checker& checker, const RankInputs& inputs, const Handle& handle,
                     const ChangingInputs& payload, const ChangingInputs& scales, int repeat, Received& received) {
    const int rank = group_.rank();
    const ResolvedConfig& config = subject_.config();
    const std::int64_t num_tokens = checker.table(rank).num_tokens;
    const auto key = static_cast<std::byte>(37 * repeat);
    RowsBuffer tokens({num_tokens, config.hidden, config.dtype, scenario_.strided}, payload.of_rank(rank, key));
    const ScalesBuffer own_scales(num_tokens, scales.row_bytes(), RankInputs::scale_format(config), scenario_.strided,
                                  scales.of_rank(rank, key));
    received = subject_.dispatch({.handle = handle, .tokens = tokens.view(), .scales = own_scales.view()});
    {
      const ReceivedCopy copy = subject_.read(received);
      EPISTLE_RETURN_MISMATCH(payload.check(checker, rank, copy.data().row_data(), key, "dispatch"));
      if (scales.row_bytes() > 0) {
        EPISTLE_RETURN_MISMATCH(scales.check(checker, rank, copy.data().scale_data(), key, "scales"));
      }
    }
    if (!checker.round().combines()) return std::nullopt;
    return check_combine(subject_, checker, inputs, received, 10 + static_cast<Round::ValueStream>(repeat),
                         scenario_.stage_combine);
  }

  Group& group_;
  Scenario scenario_;
  Subject subject_;
  std::deque<Handle> handles_;
};

/// The `idx`-th dispatcher of a soak. An error says which one that was, so that the soak can be started there.
void play_stretch(Group& group, const SoakOptions& options, std::int64_t idx, std::int64_t num_trips) {
  const std::uint64_t seed = mix(options.seed, static_cast<std::uint64_t>(idx));
  try {
    Stretch(group, options, seed).play(num_trips);
  } catch (const Error& error) {
    throw Error(error.code(),
                fmt::format("dispatcher {} ({}): {}", idx, to_text(soak_scenario(options, seed)), error.what()),
                error.context());
  }
}

}  // namespace

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

SoakResult soak_rank(Group& group, const SoakOptions& options, const SoakProgress& progress) {
  int device = 0;
  for (std::int64_t idx = 0; idx < kWarmUpDispatchers; ++idx) {
    Stretch stretch(group, options, mix(kWarmUpSeed, static_cast<std::uint64_t>(idx)));
    device = stretch.device();
    stretch.play(1);
  }
  SoakResult result;
  result.free_before_bytes = free_device_bytes(group, device);
  std::int64_t num_dispatchers = 0;
  while (result.num_done < options.num_round_trips) {
    const std::int64_t now = std::min(kTripsPerDispatcher, options.num_round_trips - result.num_done);
    play_stretch(group, options, options.first_dispatcher + num_dispatchers, now);
    ++num_dispatchers;
    result.num_done += now;
    if (group.rank() == 0) progress(result.num_done);
  }
  result.subject = fmt::format("{} dispatchers", num_dispatchers);
  result.free_after_bytes = free_device_bytes(group, device);
  return result;
}

}  // namespace epistle::testing
