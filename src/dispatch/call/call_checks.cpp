#include "dispatch/call/call_checks.hpp"

#include <fmt/format.h>

namespace epistle {

Complaint CallChecks::handle(const Handle& handle, bool own, std::string_view dispatcher, std::string_view open_call,
                             Phase phase) const {
  if (handle.state() == nullptr) {
    return complain(ErrorCode::kHandleMismatch, phase,
                    "the handle is empty (moved from, or never prepared); call prepare first");
  }
  if (!own) {
    return complain(
        ErrorCode::kHandleMismatch, phase,
        fmt::format("the handle was prepared by another dispatcher than this one ({}); prepare it here", dispatcher));
  }
  if (!open_call.empty()) {
    return complain(ErrorCode::kInvalidArgument, phase,
                    fmt::format("the receive half of the last {} is missing; call it first, or use a second "
                                "dispatcher for overlapping batches",
                                open_call));
  }
  return std::nullopt;
}

Error CallChecks::nothing_sent(std::string_view call, Phase phase) const {
  return complain(ErrorCode::kInvalidArgument, phase,
                  fmt::format("{}_receive needs the {}_send of the same handle before it", call, call));
}

Complaint CallChecks::routing(const RoutingView& routing) const {
  const auto reject = [this](const std::string& message) {
    return complain(ErrorCode::kInvalidArgument, Phase::kLayout, message);
  };
  if (routing.num_tokens < 0 || routing.num_tokens > config.max_tokens) {
    return reject(fmt::format("{} tokens; this dispatcher was created for 0 to {} (max_tokens)", routing.num_tokens,
                              config.max_tokens));
  }
  if (routing.id_type != IdType::kInt32 && routing.id_type != IdType::kInt64) {
    return reject(fmt::format("routing.id_type has the value {}; it is kInt32 (0) or kInt64 (1)",
                              static_cast<int>(routing.id_type)));
  }
  if (routing.top_k != config.top_k) {
    return reject(fmt::format("the routing has top_k {}, the dispatcher {}", routing.top_k, config.top_k));
  }
  if (routing.expert_ids == nullptr && routing.num_tokens > 0) return reject("routing.expert_ids is null");
  return std::nullopt;
}

Complaint CallChecks::payload(std::int64_t num_tokens, const Payload& payload) const {
  const auto reject = [this](const std::string& message) {
    return complain(ErrorCode::kInvalidArgument, Phase::kDispatch, message);
  };
  if (payload.num_tokens != num_tokens) {
    return reject(
        fmt::format("the payload has {} tokens, the handle was prepared for {}", payload.num_tokens, num_tokens));
  }
  if (num_tokens > 0 && payload.rows == nullptr) return reject("payload.rows is null");
  if (num_tokens > 0 && (payload.scales != nullptr) != (params.scale_bytes > 0)) {
    return reject(fmt::format("payload.scales is {}, but a row of this dispatcher has {} bytes of scales",
                              payload.scales == nullptr ? "null" : "given", params.scale_bytes));
  }
  return std::nullopt;
}

Complaint CallChecks::expert_outputs(const HandleState& state, const void* rows) const {
  if (params.combine_row_bytes == 0) {
    return complain(ErrorCode::kUnsupported, Phase::kCombine,
                    "a dispatcher of raw rows combines only with combine_hidden set in its configuration");
  }
  if (rows == nullptr && state.output.num_rows > 0) {
    return complain(ErrorCode::kInvalidArgument, Phase::kCombine, "rows is null");
  }
  return std::nullopt;
}

Complaint CallChecks::sums(const HandleState& state, const void* out, std::int64_t out_bytes) const {
  const std::int64_t needed_bytes = sum_bytes(state);
  if (out_bytes >= needed_bytes && (out != nullptr || needed_bytes == 0)) return std::nullopt;
  return complain(ErrorCode::kBufferTooSmall, Phase::kCombine,
                  fmt::format("out has {} bytes; {} tokens of {} bytes need {}", out == nullptr ? 0 : out_bytes,
                              state.stats.num_tokens, params.combine_row_bytes, needed_bytes));
}

Complaint CallChecks::dispatch_backward(const HandleState& state, const void* grad_rows, const float* grad_weights,
                                        const void* grad_out, std::int64_t grad_out_bytes,
                                        const float* grad_topk_weights) const {
  const bool has_rows = state.output.num_rows > 0;
  const bool has_tokens = state.stats.num_tokens > 0;
  if (params.combine_row_bytes == 0) {
    return complain(ErrorCode::kUnsupported, Phase::kCombine, "raw rows without combine_hidden have no gradients");
  }
  if (has_rows && grad_rows == nullptr) {
    return complain(ErrorCode::kInvalidArgument, Phase::kCombine, "grad_rows is null");
  }
  if (has_tokens && (grad_out == nullptr || grad_out_bytes < sum_bytes(state))) {
    return complain(ErrorCode::kBufferTooSmall, Phase::kCombine,
                    fmt::format("grad_out has {} bytes; {} tokens need {}", grad_out == nullptr ? 0 : grad_out_bytes,
                                state.stats.num_tokens, sum_bytes(state)));
  }
  if (has_rows && has_tokens && (grad_weights == nullptr) != (grad_topk_weights == nullptr)) {
    return complain(
        ErrorCode::kInvalidArgument, Phase::kCombine,
        fmt::format("grad_weights is {} and grad_topk_weights is {}; give both or neither",
                    grad_weights == nullptr ? "null" : "given", grad_topk_weights == nullptr ? "null" : "given"));
  }
  return std::nullopt;
}

Complaint CallChecks::combine_backward(const HandleState& state, const void* grad_out, const void* saved_rows,
                                       const float* grad_weights, const void* combine_rows) const {
  if (params.combine_row_bytes == 0) {
    return complain(ErrorCode::kUnsupported, Phase::kCombine, "raw rows without combine_hidden have no gradients");
  }
  if (grad_out == nullptr && state.stats.num_tokens > 0) {
    return complain(ErrorCode::kInvalidArgument, Phase::kCombine, "grad_out is null");
  }
  if (saved_rows != nullptr && (!config.apply_weights || grad_weights == nullptr)) {
    return complain(ErrorCode::kInvalidArgument, Phase::kCombine,
                    "saved_rows yields gradients of the weights: it needs apply_weights in the configuration and a "
                    "grad_weights buffer");
  }
  if (saved_rows != nullptr && saved_rows == combine_rows) {
    return complain(ErrorCode::kInvalidArgument, Phase::kCombine,
                    "saved_rows is output().combine_rows, which the gradients overwrite; save a copy");
  }
  return std::nullopt;
}

}  // namespace epistle
