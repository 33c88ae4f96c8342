// A CUDA dispatcher that takes and gives host pointers, so that what was written for the host device runs on it as it
// is.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "epistle/cuda.hpp"
#include "epistle/dispatcher.hpp"

#include "dispatch/call/handle_state.hpp"
#include "support/device_arena.hpp"
#include "support/host_output.hpp"
#include "support/scenario.hpp"

namespace epistle::testing {

struct StagedOptions {
  CudaOptions cuda = {};
  bool split_halves = false;  ///< dispatch and combine call the send and the receive half, not the fused call
  /// Overwrites rows on the device before every call that must write all of them. Costs a barrier of the group.
  bool poison = true;
  std::int64_t arena_bytes = DeviceArena::kDefaultBytes;  ///< device memory for what one call takes and gives
};

class StagedCudaDispatcher final : public Dispatcher {
 public:
  /// Collective.
  StagedCudaDispatcher(std::string_view name, Group& group, const DispatcherConfig& config,
                       const StagedOptions& options = {})
      : group_(group), options_(options), inner_(make_cuda_dispatcher(name, group, config, options.cuda)) {
    arena_.emplace(inner_->device(), options.arena_bytes);
    inner_->set_stream(arena_->stream());
    // Nobody may still be taking memory when another rank's first call waits on the device.
    group_.barrier();
  }

  ~StagedCudaDispatcher() override {
    (void)cudaSetDevice(inner_->device());
    (void)cudaStreamSynchronize(arena_->stream());
    try {
      // Freeing memory waits for the whole device and keeps others from starting kernels meanwhile.
      group_.barrier();
    } catch (const Error&) {
      // The group is broken: nobody will call anything any more.
    }
    inner_.reset();
    arena_.reset();
  }

  StagedCudaDispatcher(const StagedCudaDispatcher&) = delete;
  StagedCudaDispatcher& operator=(const StagedCudaDispatcher&) = delete;

  [[nodiscard]] CudaDispatcher& inner() const noexcept { return *inner_; }

  [[nodiscard]] std::string_view name() const noexcept override { return inner_->name(); }
  [[nodiscard]] const DispatcherConfig& config() const noexcept override { return inner_->config(); }
  [[nodiscard]] const DispatchLayout& layout() const noexcept override { return inner_->layout(); }
  [[nodiscard]] std::int64_t buffer_bytes() const noexcept override { return inner_->buffer_bytes(); }
  [[nodiscard]] std::int64_t resident_bytes() const override { return inner_->resident_bytes(); }
  [[nodiscard]] WireBytes wire_bytes(const Handle& handle) const override {
    return inner_->wire_bytes(inner_of(handle));
  }

  [[nodiscard]] Handle prepare(const RoutingView& routing) override {
    begin_call();
    RoutingView staged = routing;
    // A view that promises more than the dispatcher takes is refused for that; its memory may well be shorter.
    const bool readable = routing.num_tokens >= 0 && routing.num_tokens <= config().max_tokens;
    const std::int64_t num_entries = readable ? routing.num_tokens * std::max(routing.top_k, 0) : 0;
    const std::int64_t id_bytes = routing.id_type == IdType::kInt32 ? 4 : 8;
    staged.expert_ids = arena_->copy_in(routing.expert_ids, num_entries * id_bytes);
    staged.weights = floats(arena_->copy_in(routing.weights, num_entries * kFloatBytes));
    auto state = std::make_shared<State>();
    state->inner = inner_->prepare(staged);
    inner_->synchronize();
    state->stats = state->inner.stats();
    state->num_tokens = routing.num_tokens;
    state->host.read_description(*arena_, state->inner.output(), layout());
    state->output = state->host.output;
    return Handle(std::move(state));
  }

  void dispatch_send(const Handle& handle, const Payload& payload) override {
    const Payload staged = begin_dispatch(handle, payload);
    inner_->dispatch_send(inner_of(handle), staged);
  }
  const DispatchOutput& dispatch_receive(const Handle& handle) override {
    inner_->dispatch_receive(inner_of(handle));
    return finish_dispatch(handle);
  }
  const DispatchOutput& dispatch(const Handle& handle, const Payload& payload) override {
    if (options_.split_halves) {
      dispatch_send(handle, payload);
      return dispatch_receive(handle);
    }
    const Payload staged = begin_dispatch(handle, payload);
    inner_->dispatch(inner_of(handle), staged);
    return finish_dispatch(handle);
  }

  void combine_send(const Handle& handle, const void* rows) override {
    begin_call();
    inner_->combine_send(inner_of(handle), stage_rows(handle, rows));
  }
  void combine_receive(const Handle& handle, void* out, std::int64_t out_bytes) override {
    std::byte* const staged = arena_->copy_in(out, out_bytes);
    inner_->combine_receive(inner_of(handle), staged, out_bytes);
    inner_->synchronize();
    copy_out(out, staged, out_bytes);
  }
  void combine(const Handle& handle, const void* rows, void* out, std::int64_t out_bytes) override {
    if (options_.split_halves) {
      combine_send(handle, rows);
      combine_receive(handle, out, out_bytes);
      return;
    }
    begin_call();
    const void* const staged_rows = stage_rows(handle, rows);
    std::byte* const staged = arena_->copy_in(out, out_bytes);
    inner_->combine(inner_of(handle), staged_rows, staged, out_bytes);
    inner_->synchronize();
    copy_out(out, staged, out_bytes);
  }

  void dispatch_backward(const Handle& handle, const void* grad_rows, const float* grad_weights, void* grad_out,
                         std::int64_t grad_out_bytes, float* grad_topk_weights) override {
    begin_call();
    const State* const state = state_of(handle);
    const std::int64_t topk_bytes = state != nullptr ? state->num_tokens * config().top_k * kFloatBytes : 0;
    const void* const staged_rows = stage_rows(handle, grad_rows);
    const float* const staged_weights = floats(arena_->copy_in(grad_weights, weights_bytes(state)));
    std::byte* const staged_out = arena_->copy_in(grad_out, grad_out_bytes);
    std::byte* const staged_topk = arena_->copy_in(grad_topk_weights, topk_bytes);
    inner_->dispatch_backward(inner_of(handle), staged_rows, staged_weights, staged_out, grad_out_bytes,
                              floats(staged_topk));
    inner_->synchronize();
    copy_out(grad_out, staged_out, grad_out_bytes);
    copy_out(grad_topk_weights, staged_topk, topk_bytes);
  }

  const std::byte* combine_backward(const Handle& handle, const void* grad_out, const void* saved_rows,
                                    float* grad_weights) override {
    begin_call();
    State* const state = state_of(handle);
    const std::int64_t row_bytes = layout().params().combine_row_bytes;
    const void* const staged_out = arena_->copy_in(grad_out, state != nullptr ? state->num_tokens * row_bytes : 0);
    const void* const staged_saved = stage_rows(handle, saved_rows);
    std::byte* const staged_weights = arena_->copy_in(grad_weights, weights_bytes(state));
    if (options_.poison) {
      if (state != nullptr) {
        overwrite(state->inner.output().combine_rows, state->host.combine_rows, state->output.num_rows * row_bytes);
      }
      group_.barrier();
    }
    const std::byte* const rows =
        inner_->combine_backward(inner_of(handle), staged_out, staged_saved, floats(staged_weights));
    inner_->synchronize();
    copy_out(grad_weights, staged_weights, weights_bytes(state));
    state->host.read_combine_rows(*arena_, rows, layout());
    state->output.combine_rows = state->host.output.combine_rows;
    return state->output.combine_rows;
  }

 private:
  struct State final : HandleState {
    Handle inner;
    std::int64_t num_tokens = 0;
    HostOutput host;
  };

  static constexpr std::int64_t kFloatBytes = sizeof(float);
  static constexpr std::byte kPoison{0xa5};

  static float* floats(std::byte* bytes) noexcept { return reinterpret_cast<float*>(bytes); }

  /// Null for a handle that is empty or came from elsewhere.
  static State* state_of(const Handle& handle) { return dynamic_cast<State*>(handle.state()); }
  static const Handle& inner_of(const Handle& handle) {
    static const Handle empty;
    const State* const state = state_of(handle);
    return state != nullptr ? state->inner : empty;
  }

  [[nodiscard]] std::int64_t weights_bytes(const State* state) const {
    return state != nullptr ? state->output.num_rows * layout().weights_per_row() * kFloatBytes : 0;
  }

  void begin_call() {
    arena_->activate();
    arena_->reset();
  }

  void copy_out(void* host, const std::byte* staged, std::int64_t num_bytes) {
    if (host != nullptr) arena_->download(host, staged, num_bytes);
  }

  /// Poison, so that what a call leaves out is noticed; where it may leave out padding, what the caller sees there.
  void overwrite(std::byte* device, const std::vector<std::byte>& mirror, std::int64_t num_bytes) {
    if (device == nullptr) return;
    if (config().zero_padding) {
      arena_->fill(device, kPoison, num_bytes);
    } else if (static_cast<std::int64_t>(mirror.size()) >= num_bytes) {
      arena_->upload(device, mirror.data(), num_bytes);
    }
  }

  [[nodiscard]] Payload begin_dispatch(const Handle& handle, const Payload& payload) {
    begin_call();
    const std::int64_t num_tokens = std::max<std::int64_t>(payload.num_tokens, 0);
    const LayoutParams& params = layout().params();
    Payload staged = payload;
    staged.rows = arena_->copy_in(payload.rows, num_tokens * params.row_bytes);
    staged.scales = arena_->copy_in(payload.scales, num_tokens * params.scale_bytes);
    if (!options_.poison) return staged;
    State* const state = state_of(handle);
    if (state != nullptr) {
      const DispatchOutput& device = state->inner.output();
      overwrite(device.rows, state->host.rows, device.num_rows * params.row_bytes);
      overwrite(device.scales, state->host.scales, device.num_rows * params.scale_bytes);
    }
    // Nobody may still be overwriting when the rows of another rank arrive.
    group_.barrier();
    return staged;
  }

  const DispatchOutput& finish_dispatch(const Handle& handle) {
    inner_->synchronize();
    State& state = *state_of(handle);
    state.host.read_rows(*arena_, state.inner.output(), layout());
    state.output = state.host.output;
    return state.output;
  }

  /// Rows that the caller wrote into the mirror of combine_rows go there on the device, others anywhere.
  [[nodiscard]] const std::byte* stage_rows(const Handle& handle, const void* rows) {
    State* const state = state_of(handle);
    if (state == nullptr) return arena_->copy_in(rows, 0);
    const std::int64_t num_bytes = state->output.num_rows * layout().params().combine_row_bytes;
    std::byte* const in_place = state->inner.output().combine_rows;
    if (in_place == nullptr || rows != state->output.combine_rows) return arena_->copy_in(rows, num_bytes);
    arena_->upload(in_place, rows, num_bytes);
    return in_place;
  }

  Group& group_;
  StagedOptions options_;
  std::unique_ptr<CudaDispatcher> inner_;
  std::optional<DeviceArena> arena_;
};

inline DispatcherFactory staged_factory(const StagedOptions& options) {
  return [options](std::string_view name, Group& group, const DispatcherConfig& config) -> std::unique_ptr<Dispatcher> {
    return std::make_unique<StagedCudaDispatcher>(name, group, config, options);
  };
}

}  // namespace epistle::testing
