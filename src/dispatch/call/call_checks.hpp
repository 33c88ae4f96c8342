// What a caller gives to a call, checked before anything moves: pure, and in the same words on every device. What has
// to be read to be checked (expert ids) is left to the device that reads it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "epistle/dispatcher.hpp"
#include "epistle/error.hpp"

#include "core/complaint.hpp"
#include "dispatch/call/handle_state.hpp"
#include "dispatch/call/resolved_config.hpp"
#include "dispatch/call/row_buffer.hpp"
#include "layout/dispatch_layout.hpp"

namespace epistle {

struct DispatcherIdentity;

/// The checks of one rank's dispatcher; refers to what it is given.
struct CallChecks {
  int rank;
  const ResolvedConfig& config;
  const LayoutParams& params;
  const DispatcherIdentity& identity;

  [[nodiscard]] Error complain(ErrorCode code, Phase phase, const std::string& message) const {
    return {code, message, {.rank = rank, .phase = phase}};
  }

  /// The handle of a call. `own`: this dispatcher has prepared it; `open_call`: what has been sent and not received
  /// yet, empty where nothing has.
  [[nodiscard]] Complaint handle(const HandleState* state, bool own, std::string_view open_call, Phase phase) const;
  /// A call that needs none, while `open_call` is.
  [[nodiscard]] Complaint nothing_open(std::string_view open_call, Phase phase) const;
  /// A receive half of `call` without its send half.
  [[nodiscard]] Error nothing_sent(std::string_view call, Phase phase) const;
  /// What only a GPU has: the host takes neither.
  [[nodiscard]] Complaint device_options(Stream stream, int num_sms, Phase phase) const;
  /// A free buffer for `call`. Where all are leased it is null, and that the complaint unless there is one.
  [[nodiscard]] std::shared_ptr<RowBuffer> free_buffer(const RowBufferPool& pool, std::string_view call, Phase phase,
                                                       Complaint& complaint) const;
  /// Likewise: where the rows that combine, or a gradient, is given can be read by the other ranks.
  [[nodiscard]] std::shared_ptr<RowBuffer> buffer_of_rows(const RowBufferPool& pool, const HandleState& state,
                                                          const ConstRows& rows, std::string_view call,
                                                          Complaint& complaint) const;

  /// prepare: all but the ids themselves.
  [[nodiscard]] Complaint routing(const PrepareRequest& request) const;
  /// dispatch, with the tokens of a handle for `num_tokens`.
  [[nodiscard]] Complaint tokens(std::int64_t num_tokens, const ConstRows& tokens, const ScalesView& scales) const;
  /// combine: weights that come with it.
  /// Which calls of the dispatcher an error is about, where it is made of several.
  [[nodiscard]] std::string of_part() const;
  [[nodiscard]] Complaint late_weights(const WeightsView& weights) const;
  /// combine: the expert outputs, and where the sums go.
  [[nodiscard]] Complaint expert_outputs(const HandleState& state, const ConstRows& outputs,
                                         const WeightsView& weights) const;
  [[nodiscard]] Complaint sums(const HandleState& state, const Rows& out, std::string_view name = "out") const;
  /// combine: outputs that are still being written, in `buffer` (null: none was found).
  [[nodiscard]] Complaint as_rows_finish(bool asked, const ConstRows& given, const RowBuffer* buffer) const;
  [[nodiscard]] Complaint dispatch_backward(const HandleState& state, const DispatchBackwardRequest& request) const;
  /// `target`: where the gradients go, which must not be the saved rows.
  [[nodiscard]] Complaint combine_backward(const HandleState& state, const CombineBackwardRequest& request,
                                           const void* target) const;

 private:
  struct Expected {
    std::string_view name;
    std::int64_t num_rows;
    std::int64_t hidden;
    DType dtype;
    Phase phase;
  };
  [[nodiscard]] Complaint rows(const ConstRows& given, const Expected& expected) const;
  [[nodiscard]] Complaint scales_of(std::int64_t num_tokens, const ScalesView& scales) const;
  [[nodiscard]] Complaint has_sums() const;
  [[nodiscard]] Error all_leased(const RowBufferPool& pool, std::string_view call, Phase phase) const;
};

}  // namespace epistle
