// The soak of replays: a CUDA graph of decode steps, replayed with other routing, rows and numbers of tokens in the
// same buffers, while ranks come late to each other at random. The GPU itself compares every byte with what the oracle
// says, so that a step takes microseconds.
#pragma once

#include "epistle/group.hpp"

#include "cuda_soak/options.hpp"
#include "cuda_soak/soak.hpp"

namespace epistle::testing {

/// Plays one rank, with `options.num_replays` decode steps or a few more. Throws kVerificationFailed, with the first
/// element that differs.
[[nodiscard]] SoakResult soak_replays(Group& group, const SoakOptions& options, const SoakProgress& progress);

}  // namespace epistle::testing
