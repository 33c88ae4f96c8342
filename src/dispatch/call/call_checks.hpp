// What a caller gives to a call, checked before anything moves: pure, and in the same words on every device. What has
// to be read to be checked (expert ids) is left to the device that reads it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "epistle/dispatcher.hpp"
#include "epistle/error.hpp"
#include "epistle/layout.hpp"
#include "epistle/routing.hpp"

#include "core/complaint.hpp"
#include "dispatch/call/handle_state.hpp"

namespace epistle {

/// The checks of one rank's dispatcher; refers to what it is given.
struct CallChecks {
  int rank;
  const DispatcherConfig& config;
  const LayoutParams& params;

  [[nodiscard]] Error complain(ErrorCode code, Phase phase, const std::string& message) const {
    return {code, message, {.rank = rank, .phase = phase}};
  }

  /// The handle of a call. `own`: this dispatcher has prepared it; `open_call`: what has been sent and not received
  /// yet, empty where nothing has.
  [[nodiscard]] Complaint handle(const Handle& handle, bool own, std::string_view dispatcher,
                                 std::string_view open_call, Phase phase) const;
  /// A receive half of `call` without its send half.
  [[nodiscard]] Error nothing_sent(std::string_view call, Phase phase) const;
  /// prepare: all but the ids themselves.
  [[nodiscard]] Complaint routing(const RoutingView& routing) const;
  /// dispatch, with the payload of a handle of `num_tokens`.
  [[nodiscard]] Complaint payload(std::int64_t num_tokens, const Payload& payload) const;
  /// combine: the expert outputs, and where the sums go.
  [[nodiscard]] Complaint expert_outputs(const HandleState& state, const void* rows) const;
  [[nodiscard]] Complaint sums(const HandleState& state, const void* out, std::int64_t out_bytes) const;
  [[nodiscard]] Complaint dispatch_backward(const HandleState& state, const void* grad_rows, const float* grad_weights,
                                            const void* grad_out, std::int64_t grad_out_bytes,
                                            const float* grad_topk_weights) const;
  /// `combine_rows`: this rank's, which the gradients overwrite.
  [[nodiscard]] Complaint combine_backward(const HandleState& state, const void* grad_out, const void* saved_rows,
                                           const float* grad_weights, const void* combine_rows) const;

 private:
  [[nodiscard]] std::int64_t sum_bytes(const HandleState& state) const {
    return state.stats.num_tokens * params.combine_row_bytes;
  }
};

}  // namespace epistle
