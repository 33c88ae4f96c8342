// What stands behind a Dispatcher: one object per (dispatcher, device), made by the registry.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "epistle/dispatcher.hpp"

#include "core/complaint.hpp"
#include "dispatch/call/handle_state.hpp"
#include "dispatch/call/row_buffer.hpp"
#include "group/group_impl.hpp"
#include "layout/buffer_plan.hpp"

namespace epistle {

/// Builds and opens what a caller holds.
struct CallAccess {
  [[nodiscard]] static Handle handle(std::shared_ptr<HandleState> state) noexcept { return Handle(std::move(state)); }
  [[nodiscard]] static const std::shared_ptr<HandleState>& state(const Handle& handle) noexcept {
    return handle.state_;
  }
  [[nodiscard]] static Received received(std::shared_ptr<HandleState> state, std::shared_ptr<RowBuffer> buffer,
                                         RowBuffer::Holds holds) noexcept {
    return {std::move(state), std::move(buffer), holds == RowBuffer::Holds::kGradients};
  }
  [[nodiscard]] static const std::shared_ptr<RowBuffer>& buffer(const Received& received) noexcept {
    return received.buffer_;
  }
  [[nodiscard]] static const std::shared_ptr<HandleState>& state(const Received& received) noexcept {
    return received.state_;
  }
  /// `buffer`: see Pending::received().
  [[nodiscard]] static Pending pending(std::shared_ptr<HandleState> state, std::shared_ptr<RowBuffer> buffer,
                                       std::uint64_t number) {
    Pending pending;
    pending.state_ = std::move(state);
    pending.buffer_ = std::move(buffer);
    pending.number_ = number;
    return pending;
  }
  [[nodiscard]] static const std::shared_ptr<HandleState>& state(const Pending& pending) noexcept {
    return pending.state_;
  }
  [[nodiscard]] static std::uint64_t number(const Pending& pending) noexcept { return pending.number_; }
};

/// What a dispatcher was created as.
struct DispatcherIdentity {
  const DispatcherInfo* info = nullptr;
  DispatcherConfig config;
  const DispatcherInfo* part = nullptr;  ///< of a dispatcher made of several: the one whose calls these are

  [[nodiscard]] const Capabilities& capabilities() const noexcept {
    return (part != nullptr ? part : info)->capabilities();
  }
};

/// What a request stands for, where its text is short.
[[nodiscard]] inline bool brings_ids(const DispatchRequest& request) noexcept {
  return !request.handle.valid() && request.expert_ids.top_k > 0;
}
[[nodiscard]] PrepareRequest routing_of(const DispatchRequest& request) noexcept;
[[nodiscard]] std::shared_ptr<HandleState> state_of(const CombineRequest& request) noexcept;
[[nodiscard]] ConstRows rows_of(const CombineRequest& request);

/// The strides of scales in bytes.
struct ScaleStrides {
  std::int64_t row = 0;
  std::int64_t column = 0;
  std::int64_t element_bytes = 0;
};
[[nodiscard]] ScaleStrides strides_in_bytes(const ScalesView& scales) noexcept;

/// What poll() says of a group.
[[nodiscard]] Health health_of(const GroupHealth& health) noexcept;

/// What one dispatch and one combine of a dispatcher put on the wire.
[[nodiscard]] WireBytes wire_bytes_of(const BufferPlan& plan, const RoutingStats& stats) noexcept;

/// The calls are those of Dispatcher, with the same promises.
class DispatcherImpl {
 public:
  virtual ~DispatcherImpl() = default;
  DispatcherImpl(const DispatcherImpl&) = delete;
  DispatcherImpl& operator=(const DispatcherImpl&) = delete;

  [[nodiscard]] const DispatcherIdentity& identity() const noexcept { return identity_; }

  [[nodiscard]] virtual Handle prepare(const PrepareRequest& request, Stream stream) = 0;
  [[nodiscard]] virtual Received dispatch(const DispatchRequest& request, Stream stream) = 0;
  [[nodiscard]] virtual Pending dispatch_send(const DispatchRequest& request, Stream stream) = 0;
  [[nodiscard]] virtual Received dispatch_receive(Pending pending, Stream stream) = 0;
  virtual void combine(const CombineRequest& request, Stream stream) = 0;
  [[nodiscard]] virtual Pending combine_send(const CombineRequest& request, Stream stream) = 0;
  virtual void combine_receive(Pending pending, Stream stream) = 0;
  virtual void dispatch_backward(const DispatchBackwardRequest& request, Stream stream) = 0;
  [[nodiscard]] virtual Received combine_backward(const CombineBackwardRequest& request, Stream stream) = 0;

  /// Whether the handle was made here.
  [[nodiscard]] virtual bool owns(const HandleState& state) const noexcept = 0;
  virtual void set_placement(const Placement& placement, Stream stream) = 0;
  [[nodiscard]] virtual const Placement& placement() const noexcept = 0;
  virtual void set_batch_quotas(const BatchQuotasRequest& request, Stream stream);
  [[nodiscard]] virtual std::vector<std::int64_t> expert_tokens() const = 0;
  /// Where no rank can be masked out nothing is lost.
  [[nodiscard]] virtual std::vector<std::int64_t> lost_tokens() const {
    return std::vector<std::int64_t>(static_cast<std::size_t>(identity_.config.num_experts), 0);
  }

  virtual void wait() = 0;
  [[nodiscard]] virtual Health poll() const noexcept = 0;
  [[nodiscard]] virtual std::vector<int> suspects() const = 0;
  virtual void abort() noexcept = 0;

  [[nodiscard]] virtual WireBytes wire_bytes(const Handle& handle) const = 0;
  [[nodiscard]] virtual std::int64_t network_bytes() const noexcept { return 0; }
  [[nodiscard]] virtual std::int64_t shared_bytes() const noexcept = 0;
  [[nodiscard]] virtual std::int64_t resident_bytes() const = 0;
  [[nodiscard]] virtual int device_ordinal() const noexcept = 0;
  [[nodiscard]] virtual std::string describe_tuning(std::int64_t num_tokens) const = 0;

 protected:
  explicit DispatcherImpl(DispatcherIdentity identity) : identity_(std::move(identity)) {}

 private:
  DispatcherIdentity identity_;
};

}  // namespace epistle
