#include "dispatch/call/call_checks.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "dispatch/call/dispatcher_impl.hpp"

namespace epistle {

Complaint CallChecks::handle(const HandleState* state, bool own, std::string_view open_call, Phase phase) const {
  if (state == nullptr) {
    return complain(ErrorCode::kHandleMismatch, phase,
                    "the handle is empty (moved from, or never prepared); call prepare first");
  }
  if (!own) {
    return complain(
        ErrorCode::kHandleMismatch, phase,
        fmt::format(
            "the handle was prepared by another dispatcher than this one ({}), or before the mask of the group was "
            "changed; prepare it here, now",
            identity.info->name()));
  }
  return nothing_open(open_call, phase);
}

Complaint CallChecks::nothing_open(std::string_view open_call, Phase phase) const {
  if (open_call.empty()) return std::nullopt;
  return complain(ErrorCode::kInvalidArgument, phase,
                  fmt::format("the receive half of the last {} is missing; call it first, or use a second dispatcher "
                              "for overlapping batches",
                              open_call));
}

Error CallChecks::nothing_sent(std::string_view call, Phase phase) const {
  return complain(ErrorCode::kInvalidArgument, phase,
                  fmt::format("{}_receive needs the Pending of the last {}_send of this dispatcher", call, call));
}

Complaint CallChecks::device_options(Stream stream, int num_sms, Phase phase) const {
  if (identity.info->device() != Device::kHost) {
    if (num_sms >= 0) return std::nullopt;
    return complain(ErrorCode::kInvalidArgument, phase, fmt::format("num_sms is {}; it is 0 or more", num_sms));
  }
  if (stream.get() == nullptr && num_sms == 0) return std::nullopt;
  return complain(ErrorCode::kInvalidArgument, phase,
                  fmt::format("{} given to a dispatcher on the host, which has no GPU; leave it out, or create the "
                              "dispatcher with CudaOptions",
                              stream.get() != nullptr ? "a stream was" : "num_sms was"));
}

Error CallChecks::all_leased(const RowBufferPool& pool, std::string_view call, Phase phase) const {
  return complain(ErrorCode::kInvalidArgument, phase,
                  fmt::format("{} needs a buffer, and all {} are leased; let a Received go (or release() it) first, or "
                              "raise num_buffers",
                              call, pool.size()));
}

std::shared_ptr<RowBuffer> CallChecks::free_buffer(const RowBufferPool& pool, std::string_view call, Phase phase,
                                                   Complaint& complaint) const {
  std::shared_ptr<RowBuffer> buffer = pool.find_free();
  if (buffer == nullptr && !complaint) complaint = all_leased(pool, call, phase);
  return buffer;
}

std::shared_ptr<RowBuffer> CallChecks::buffer_of_rows(const RowBufferPool& pool, const HandleState& state,
                                                      const ConstRows& rows, std::string_view call,
                                                      Complaint& complaint) const {
  std::shared_ptr<RowBuffer> buffer = pool.find_for_rows(rows.data, &state);
  if (buffer == nullptr && !complaint) {
    complaint = all_leased(pool, fmt::format("{} of rows of your own", call), Phase::kCombine);
  }
  return buffer;
}

Complaint CallChecks::routing(const PrepareRequest& request) const {
  const IdsView& ids = request.expert_ids;
  const auto reject = [this](const std::string& message) {
    return complain(ErrorCode::kInvalidArgument, Phase::kLayout, message);
  };
  if (ids.num_tokens < 0 || ids.num_tokens > config.max_tokens) {
    return reject(fmt::format("{} tokens; this dispatcher was created for 0 to {} (max_tokens)", ids.num_tokens,
                              config.max_tokens));
  }
  if (request.most_tokens < 0 || request.most_tokens > config.max_tokens) {
    return reject(fmt::format("most_tokens is {}; this dispatcher was created for 0 to {} (max_tokens)",
                              request.most_tokens, config.max_tokens));
  }
  if (request.most_tokens > 0 && ids.num_tokens > request.most_tokens) {
    return reject(fmt::format("{} tokens; this call says that no rank has more than {} (most_tokens)", ids.num_tokens,
                              request.most_tokens));
  }
  if (ids.type != IdType::kInt32 && ids.type != IdType::kInt64) {
    return reject(
        fmt::format("expert_ids.type has the value {}; it is kInt32 (0) or kInt64 (1)", static_cast<int>(ids.type)));
  }
  if (ids.top_k != config.top_k && !(ids.num_tokens == 0 && ids.data == nullptr)) {
    return reject(fmt::format("expert_ids has top_k {}, the dispatcher {}", ids.top_k, config.top_k));
  }
  if (ids.data == nullptr && ids.num_tokens > 0) return reject("expert_ids.data is null");
  if (ids.stride != 0 && ids.stride < ids.top_k) {
    return reject(fmt::format("expert_ids.stride is {}; a token has {} ids", ids.stride, ids.top_k));
  }
  if (request.weights.stride != 0 && request.weights.stride < config.top_k) {
    return reject(fmt::format("weights.stride is {}; a token has {} weights", request.weights.stride, config.top_k));
  }
  if (request.num_tokens != nullptr && !identity.capabilities().device_token_count) {
    return complain(ErrorCode::kUnsupported, Phase::kLayout,
                    fmt::format("dispatcher '{}' does not read the number of tokens when a call runs; leave num_tokens "
                                "null",
                                identity.info->name()));
  }
  return std::nullopt;
}

Complaint CallChecks::rows(const ConstRows& given, const Expected& expected) const {
  const auto reject = [&](const std::string& message) {
    return complain(ErrorCode::kInvalidArgument, expected.phase, message);
  };
  if (given.num_rows != expected.num_rows) {
    return reject(fmt::format("{} has {} rows; {} are expected", expected.name, given.num_rows, expected.num_rows));
  }
  if (expected.num_rows == 0) return std::nullopt;
  if (given.data == nullptr) return reject(fmt::format("{}.data is null", expected.name));
  if (given.hidden != expected.hidden || given.dtype != expected.dtype) {
    return reject(fmt::format("a row of {} has {} elements of {}; {} of {} are expected", expected.name, given.hidden,
                              to_string(given.dtype), expected.hidden, to_string(expected.dtype)));
  }
  if (given.stride == 0 || given.stride >= given.hidden) return std::nullopt;
  return reject(fmt::format("{}.stride is {}; a row has {} elements", expected.name, given.stride, given.hidden));
}

Complaint CallChecks::scales_of(std::int64_t num_tokens, const ScalesView& scales) const {
  const auto reject = [this](const std::string& message) {
    return complain(ErrorCode::kInvalidArgument, Phase::kDispatch, message);
  };
  if (num_tokens == 0) return std::nullopt;
  if (config.quantises) {
    if (scales.data == nullptr) return std::nullopt;
    return reject(
        "scales.data is given, but this dispatcher computes the scales itself (wire Fp8Blocks); leave it null");
  }
  if ((scales.data != nullptr) != (params.scale_bytes > 0)) {
    return reject(fmt::format("scales.data is {}, but a row of this dispatcher has {} bytes of scales",
                              scales.data == nullptr ? "null" : "given", params.scale_bytes));
  }
  if (scales.data == nullptr) return std::nullopt;
  const ScaleFormat format = config.scale_format();
  if (scales.format != format) {
    return reject(fmt::format("scales are {}; those of {} rows are {} here", to_string(scales.format),
                              to_string(config.dtype), to_string(format)));
  }
  const std::int64_t columns = config.scale_columns();
  if (scales.num_rows != num_tokens || scales.num_columns != columns) {
    return reject(fmt::format("scales are [{}, {}]; [{}, {}] are expected", scales.num_rows, scales.num_columns,
                              num_tokens, columns));
  }
  if (scales.rows_per_block != 0) {
    return reject(
        fmt::format("scales.rows_per_block is {}; scales that are given have no blocks", scales.rows_per_block));
  }
  if (scales.row_stride >= 0 && scales.column_stride > 0) return std::nullopt;
  return reject(
      fmt::format("scales have strides of {} and {}; they go forwards", scales.row_stride, scales.column_stride));
}

Complaint CallChecks::tokens(std::int64_t num_tokens, const ConstRows& tokens, const ScalesView& scales) const {
  if (Complaint complaint = rows(tokens, {.name = "tokens",
                                          .num_rows = num_tokens,
                                          .hidden = config.hidden,
                                          .dtype = config.dtype,
                                          .phase = Phase::kDispatch})) {
    return complaint;
  }
  return scales_of(num_tokens, scales);
}

Complaint CallChecks::has_sums() const {
  if (params.combine_row_bytes > 0) return std::nullopt;
  return complain(ErrorCode::kUnsupported, Phase::kCombine,
                  "a dispatcher of raw rows combines, and has gradients, only with expert_output_hidden set in its "
                  "configuration");
}

std::string CallChecks::of_part() const {
  if (identity.part == nullptr) return {};
  return fmt::format("of calls that it gives to '{}' ", identity.part->name());
}

Complaint CallChecks::late_weights(const WeightsView& weights) const {
  if (weights.data == nullptr) return std::nullopt;
  if (!identity.capabilities().late_weights) {
    return complain(
        ErrorCode::kUnsupported, Phase::kCombine,
        fmt::format("dispatcher '{}' takes the weights {}with the ids (PrepareRequest, DispatchRequest), not "
                    "in combine",
                    identity.info->name(), of_part()));
  }
  // Elsewhere a weight is needed where the expert is, before the rows are on their way.
  if (!config.apply_weights || config.order != SumOrder::kFlat || config.layout == OutputLayout::kTokenMajor) {
    return complain(ErrorCode::kUnsupported, Phase::kCombine,
                    "combine takes weights where it applies them to rows of experts in flat order: apply_weights, "
                    "order flat, layout expert_major or expert_blocks; else give them with the ids");
  }
  if (weights.stride == 0 || weights.stride == config.top_k) return std::nullopt;
  return complain(
      ErrorCode::kInvalidArgument, Phase::kCombine,
      fmt::format("weights.stride is {}; those of combine lie one behind the other: {}", weights.stride, config.top_k));
}

Complaint CallChecks::expert_outputs(const HandleState& state, const ConstRows& outputs,
                                     const WeightsView& weights) const {
  if (Complaint complaint = has_sums()) return complaint;
  if (Complaint complaint = late_weights(weights)) return complaint;
  return rows(outputs, {.name = "rows",
                        .num_rows = state.description.num_rows,
                        .hidden = config.combine_hidden,
                        .dtype = config.combine_dtype,
                        .phase = Phase::kCombine});
}

Complaint CallChecks::sums(const HandleState& state, const Rows& out, std::string_view name) const {
  const bool is_missing = out.data == nullptr && state.num_tokens > 0;
  if (is_missing || out.num_rows < state.num_tokens) {
    const std::string found = is_missing ? ".data is null" : fmt::format(" has {} rows", out.num_rows);
    return complain(ErrorCode::kBufferTooSmall, Phase::kCombine,
                    fmt::format("{}{}; {} tokens need as many rows", name, found, state.num_tokens));
  }
  ConstRows wanted = out;
  wanted.num_rows = state.num_tokens;
  return rows(wanted, {.name = name,
                       .num_rows = state.num_tokens,
                       .hidden = config.combine_hidden,
                       .dtype = config.combine_dtype,
                       .phase = Phase::kCombine});
}

Complaint CallChecks::as_rows_finish(bool asked, const ConstRows& given, const RowBuffer* buffer) const {
  if (!asked) return std::nullopt;
  if (buffer == nullptr || !buffer->raises_flags || given.data != buffer->outputs) {
    return complain(ErrorCode::kUnsupported, Phase::kCombine,
                    "combine takes rows as they finish (as_rows_finish) from the expert_outputs() of a Received whose "
                    "row_flags() there are; make a low_latency dispatcher on cuda with CudaOptions::row_flags, give it "
                    "ids in place of a handle, and write the outputs there");
  }
  if (params.order != SumOrder::kFlat) return std::nullopt;
  return complain(ErrorCode::kUnsupported, Phase::kCombine,
                  "combine takes no rows as they finish (as_rows_finish) under SumOrder::kFlat; take another order, or "
                  "combine when all rows are done");
}

Complaint CallChecks::dispatch_backward(const HandleState& state, const DispatchBackwardRequest& request) const {
  if (Complaint complaint = has_sums()) return complaint;
  if (Complaint complaint = rows(request.grad_rows, {.name = "grad_rows",
                                                     .num_rows = state.description.num_rows,
                                                     .hidden = config.combine_hidden,
                                                     .dtype = config.combine_dtype,
                                                     .phase = Phase::kCombine})) {
    return complaint;
  }
  if (Complaint complaint = sums(state, request.grad_tokens, "grad_tokens")) return complaint;
  const bool has_both = state.description.num_rows > 0 && state.num_tokens > 0;
  if (!has_both || (request.grad_weights == nullptr) == (request.grad_probs == nullptr)) return std::nullopt;
  return complain(ErrorCode::kInvalidArgument, Phase::kCombine,
                  fmt::format("grad_weights is {} and grad_probs is {}; give both or neither",
                              request.grad_weights == nullptr ? "null" : "given",
                              request.grad_probs == nullptr ? "null" : "given"));
}

Complaint CallChecks::combine_backward(const HandleState& state, const CombineBackwardRequest& request,
                                       const void* target) const {
  if (Complaint complaint = has_sums()) return complaint;
  if (Complaint complaint = rows(request.grad_out, {.name = "grad_out",
                                                    .num_rows = state.num_tokens,
                                                    .hidden = config.combine_hidden,
                                                    .dtype = config.combine_dtype,
                                                    .phase = Phase::kCombine})) {
    return complaint;
  }
  if (request.saved_rows.data == nullptr) return std::nullopt;
  if (!config.apply_weights || request.grad_weights == nullptr) {
    return complain(ErrorCode::kInvalidArgument, Phase::kCombine,
                    "saved_rows yields gradients of the weights: it needs apply_weights in the configuration and a "
                    "grad_weights buffer");
  }
  if (request.saved_rows.data == target) {
    return complain(ErrorCode::kInvalidArgument, Phase::kCombine,
                    "saved_rows are the expert_outputs() that the gradients overwrite; keep their Received, with one "
                    "more of num_buffers, or save a copy");
  }
  return rows(request.saved_rows, {.name = "saved_rows",
                                   .num_rows = state.description.num_rows,
                                   .hidden = config.combine_hidden,
                                   .dtype = config.combine_dtype,
                                   .phase = Phase::kCombine});
}

}  // namespace epistle
