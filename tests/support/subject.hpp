// A dispatcher under test, on any device. It is given host memory, and gives host memory: what a test says is the same
// for all devices.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "epistle/dispatcher.hpp"

#include "dispatch/call/resolved_config.hpp"
#include "measure/received_data.hpp"
#include "support/received_copy.hpp"
#include "support/test_memory.hpp"

namespace epistle::testing {

struct SubjectOptions {
  DeviceOptions device = HostOptions{};
  bool split_halves = false;  ///< dispatch and combine call the send and the receive half, not the fused call
  MemoryFactory memory = {};  ///< of the device; none: the host's
};

class Subject {
 public:
  /// What a rank fills rows with that a call has to write.
  static constexpr std::byte kPoison{0xa5};

  /// Collective.
  Subject(Group& group, std::string_view name, const DispatcherConfig& config, const SubjectOptions& options = {})
      : group_(group),
        options_(options),
        config_(resolve_config(config, group.size(), group.domain_size())),
        dispatcher_(std::in_place, group, name, config, options.device),
        memory_(options.memory ? options.memory(dispatcher_->device_ordinal()) : std::make_unique<HostMemory>()) {
    // Nobody may still be taking memory when another rank's first call waits on a GPU.
    if (on_gpu()) group_.barrier();
  }

  ~Subject() {
    memory_->drain();
    try {
      // Freeing memory waits for a whole GPU and keeps others from starting kernels meanwhile.
      if (on_gpu()) group_.barrier();
    } catch (const Error&) {
      // The group is broken: nobody will call anything any more.
    }
    dispatcher_.reset();
  }

  Subject(const Subject&) = delete;
  Subject& operator=(const Subject&) = delete;

  [[nodiscard]] Group& group() const noexcept { return group_; }
  [[nodiscard]] Dispatcher& dispatcher() noexcept { return *dispatcher_; }
  [[nodiscard]] TestMemory& memory() const noexcept { return *memory_; }
  [[nodiscard]] const ResolvedConfig& config() const noexcept { return config_; }
  [[nodiscard]] Stream stream() const noexcept { return memory_->stream(); }

  // ---- The calls. All wait, and throw what was found ----------------------------------------------------------------

  [[nodiscard]] Handle prepare(const PrepareRequest& request) {
    memory_->begin_call();
    PrepareRequest placed = request;
    place_routing(placed);
    Handle handle = dispatcher_->prepare(placed, stream());
    wait();
    return handle;
  }

  [[nodiscard]] Received dispatch(const DispatchRequest& request) {
    memory_->begin_call();
    DispatchRequest placed = request;
    place_routing(placed);
    placed.tokens = place(request.tokens);
    placed.scales = place(request.scales);
    Received received = options_.split_halves
                            ? dispatcher_->dispatch_receive(dispatcher_->dispatch_send(placed, stream()), stream())
                            : dispatcher_->dispatch(placed, stream());
    wait();
    return received;
  }

  /// `rows` may be a view of a lease.
  void combine(const CombineRequest& request) {
    memory_->begin_call();
    CombineRequest placed = request;
    placed.rows = place_outputs(request);
    placed.weights = place_weights(request.weights, config_.max_tokens);
    placed.out = place(request.out);
    if (options_.split_halves) {
      dispatcher_->combine_receive(dispatcher_->combine_send(placed, stream()), stream());
    } else {
      dispatcher_->combine(placed, stream());
    }
    wait();
    take_back(request.out, placed.out);
  }

  void dispatch_backward(const DispatchBackwardRequest& request) {
    memory_->begin_call();
    DispatchBackwardRequest placed = request;
    placed.grad_rows = place(request.grad_rows);
    placed.grad_weights = floats(request.grad_weights, row_weights(request.handle));
    placed.grad_tokens = place(request.grad_tokens);
    placed.grad_probs = floats(request.grad_probs, request.grad_tokens.num_rows * config_.top_k);
    dispatcher_->dispatch_backward(placed, stream());
    wait();
    take_back(request.grad_tokens, placed.grad_tokens);
    take_back(request.grad_probs, placed.grad_probs, request.grad_tokens.num_rows * config_.top_k);
  }

  [[nodiscard]] Received combine_backward(const CombineBackwardRequest& request) {
    memory_->begin_call();
    CombineBackwardRequest placed = request;
    placed.grad_out = place(request.grad_out);
    placed.saved_rows = place(request.saved_rows);
    placed.grad_weights = floats(request.grad_weights, row_weights(request.handle));
    Received gradients = dispatcher_->combine_backward(placed, stream());
    wait();
    take_back(request.grad_weights, placed.grad_weights, row_weights(request.handle));
    return gradients;
  }

  // ---- Looking at what came of them ---------------------------------------------------------------------------------

  [[nodiscard]] DescriptionCopy read(const Handle& handle) const {
    return {*memory_, handle.description(), config_.top_k};
  }
  [[nodiscard]] ReceivedCopy read(const Received& received) const {
    return {*memory_, data_of(received), config_.top_k};
  }
  /// Writes expert outputs to where combine reads them without a copy.
  void write_outputs(const Received& received, const std::vector<std::byte>& rows) {
    memory_->write(received.expert_outputs().data, rows.data(), static_cast<std::int64_t>(rows.size()));
  }

  /// Collective: overwrites the rows and scales of a lease on all ranks before any of them sends again, and gives the
  /// lease back: the next call that uses the buffer has to write all of them.
  void poison_and_release(Received& received) {
    const ReceivedData data = data_of(received);
    memory_->fill(data.rows.data, kPoison, data.num_rows() * data.rows.row_bytes());
    if (data.scales.data != nullptr) {
      memory_->fill(data.scale_data(), kPoison, data.scale_bytes());
    }
    received.release();
    group_.barrier();
  }
  /// The same with the expert outputs, for combine_backward. Nobody may still be reading them.
  void poison_outputs_and_release(Received& received) {
    group_.barrier();
    const Rows outputs = received.expert_outputs();
    memory_->fill(outputs.data, kPoison, received.num_rows() * outputs.row_bytes());
    received.release();
    group_.barrier();
  }

 private:
  static constexpr std::int64_t kFloatBytes = sizeof(float);

  [[nodiscard]] bool on_gpu() const noexcept { return std::holds_alternative<CudaOptions>(options_.device); }
  void wait() { dispatcher_->wait(); }

  /// Bytes from the first to the last element of `num_rows` of `row` elements, `stride` apart (0: row).
  static std::int64_t span_bytes(std::int64_t num_rows, std::int64_t row, std::int64_t stride,
                                 std::int64_t element_bytes) {
    if (num_rows <= 0 || row <= 0) return 0;
    return ((num_rows - 1) * (stride != 0 ? stride : row) + row) * element_bytes;
  }

  /// A view that promises more than the dispatcher takes is refused for that; its memory may well be shorter.
  [[nodiscard]] std::int64_t readable(std::int64_t num_tokens) const {
    return num_tokens <= config_.max_tokens ? num_tokens : 0;
  }

  template <typename Request>
  void place_routing(Request& request) {
    const IdsView& ids = request.expert_ids;
    const std::int64_t id_bytes = ids.type == IdType::kInt32 ? 4 : 8;
    const std::int64_t num_tokens = readable(ids.num_tokens);
    request.weights = place_weights(request.weights, num_tokens);
    request.expert_ids.data = memory_->place(ids.data, span_bytes(num_tokens, ids.top_k, ids.stride, id_bytes));
    request.step_seed_at =
        static_cast<const std::uint64_t*>(memory_->place(request.step_seed_at, sizeof(std::uint64_t)));
    request.num_tokens = static_cast<const std::int32_t*>(memory_->place(request.num_tokens, sizeof(std::int32_t)));
  }
  [[nodiscard]] WeightsView place_weights(const WeightsView& weights, std::int64_t num_tokens) {
    const std::int64_t num_bytes = span_bytes(num_tokens, config_.top_k, weights.stride, kFloatBytes);
    return {static_cast<const float*>(memory_->place(weights.data, num_bytes)), weights.stride};
  }

  [[nodiscard]] ConstRows place(const ConstRows& rows) {
    ConstRows placed = rows;
    placed.data = memory_->place(rows.data, rows_bytes(rows));
    return placed;
  }
  [[nodiscard]] Rows place(const Rows& rows) {
    Rows placed = rows;
    placed.data = memory_->place(rows.data, rows_bytes(rows));
    return placed;
  }
  static std::int64_t rows_bytes(const ConstRows& rows) {
    return span_bytes(rows.num_rows, rows.hidden, rows.stride, dtype_bytes(rows.dtype));
  }
  [[nodiscard]] ScalesView place(const ScalesView& scales) {
    ScalesView placed = scales;
    const std::int64_t row_stride = scales.row_stride != 0 ? scales.row_stride : scales.num_columns;
    const std::int64_t last = (scales.num_rows - 1) * row_stride + (scales.num_columns - 1) * scales.column_stride;
    placed.data =
        memory_->place(scales.data, scales.num_rows > 0 ? (last + 1) * scale_element_bytes(scales.format) : 0);
    return placed;
  }
  [[nodiscard]] ConstRows place_outputs(const CombineRequest& request) {
    const void* const rows = request.rows.data;
    const bool is_leased = request.received.valid() &&
                           (rows == request.received.expert_outputs().data || rows == request.received.rows().data);
    return rows == nullptr || is_leased ? request.rows : place(request.rows);
  }
  [[nodiscard]] float* floats(const float* values, std::int64_t count) {
    return static_cast<float*>(memory_->place(values, count * kFloatBytes));
  }

  void take_back(const Rows& host, const Rows& placed) {
    if (host.data != nullptr) memory_->read(host.data, placed.data, rows_bytes(host));
  }
  void take_back(float* host, const float* placed, std::int64_t count) {
    if (host != nullptr) memory_->read(host, placed, count * kFloatBytes);
  }

  /// Entries of RowDescription::weights.
  [[nodiscard]] std::int64_t row_weights(const Handle& handle) const {
    if (!handle.valid()) return 0;
    return handle.description().num_rows * (config_.layout == OutputLayout::kTokenMajor ? config_.top_k : 1);
  }

  Group& group_;
  SubjectOptions options_;
  ResolvedConfig config_;
  std::optional<Dispatcher> dispatcher_;
  std::unique_ptr<TestMemory> memory_;
};

}  // namespace epistle::testing
