// What stands around dispatch and combine in a replayed decode step: kernels that choose its inputs, play the experts,
// and compare its output.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "support/scenario.hpp"

namespace epistle::testing {

inline constexpr int kReplayTokens = 32;  ///< most of a rank
inline constexpr int kReplayTopK = 4;
inline constexpr int kReplayHidden = 512;
inline constexpr std::uint64_t kReplayVariants = 32;

/// Rows of bf16, as bits.
struct alignas(16) ReplayRows {
  std::uint16_t elements[kReplayTokens * kReplayHidden];
};

/// What a rank gives to a step, and the buffers that a graph gives it from.
struct alignas(16) ReplayInputs {
  std::int32_t expert_ids[kReplayTokens * kReplayTopK];
  float weights[kReplayTokens * kReplayTopK];
  ReplayRows tokens;
  std::int32_t num_tokens;
};

/// What was compared so far.
struct ReplayFindings {
  std::uint64_t num_steps;
  std::uint64_t num_mismatches;  ///< elements that differ
  std::uint32_t has_first;       ///< whether there is a first one, and this is it:
  std::int32_t token;
  std::int32_t element;
  std::uint16_t actual;
  std::uint16_t expected;
  std::uint64_t step;
};

/// Memory of a rank's GPU.
struct ReplayArgs {
  std::uint64_t seed = 0;
  std::uint64_t rank = 0;
  const ReplayInputs* variants = nullptr;    ///< [kReplayVariants]
  const ReplayRows* expectations = nullptr;  ///< [kReplayVariants]; zeros behind the tokens that there are
  ReplayInputs* inputs = nullptr;
  ReplayRows* out = nullptr;
  ReplayFindings* findings = nullptr;
};

/// Which inputs a step has, on all ranks alike.
[[nodiscard]] EPISTLE_HOST_DEVICE inline std::uint64_t replay_variant(std::uint64_t seed, std::uint64_t step) {
  return mix(seed, step) % kReplayVariants;
}

/// Before any rank has a call under way, as loading may wait for the whole device.
[[nodiscard]] cudaError_t load_replay_kernels();

/// Fills the inputs of the next step and poisons its output; then makes this rank late, at some steps.
[[nodiscard]] cudaError_t launch_replay_inputs(const ReplayArgs& args, cudaStream_t stream);

/// Every expert gives back what it was given. Makes this rank late, at some steps.
[[nodiscard]] cudaError_t launch_replay_experts(const ReplayArgs& args, const void* rows, void* outputs,
                                                std::int64_t num_bytes, cudaStream_t stream);

/// Compares the output, and counts the step.
[[nodiscard]] cudaError_t launch_replay_check(const ReplayArgs& args, cudaStream_t stream);

}  // namespace epistle::testing
