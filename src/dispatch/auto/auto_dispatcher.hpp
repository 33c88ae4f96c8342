// `auto`: calls of few tokens go to one dispatcher, all others to a second. Those that can get calls are made with it,
// and a handle stays with the one that made it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dispatch/call/dispatcher_impl.hpp"

namespace epistle::automatic {

class AutoDispatcher final : public DispatcherImpl {
 public:
  struct Part {
    std::string_view name;
    std::unique_ptr<DispatcherImpl> dispatcher;
  };
  /// `few` takes the calls in which no rank has more than `most_few` tokens; without a dispatcher where there are none,
  /// or nothing but such calls: then `many` is the one for these.
  AutoDispatcher(DispatcherIdentity identity, Part few, Part many, std::int64_t most_few);

  [[nodiscard]] Handle prepare(const PrepareRequest& request, Stream stream) override;
  [[nodiscard]] Received dispatch(const DispatchRequest& request, Stream stream) override;
  [[nodiscard]] Pending dispatch_send(const DispatchRequest& request, Stream stream) override;
  [[nodiscard]] Received dispatch_receive(Pending pending, Stream stream) override;
  void combine(const CombineRequest& request, Stream stream) override;
  [[nodiscard]] Pending combine_send(const CombineRequest& request, Stream stream) override;
  void combine_receive(Pending pending, Stream stream) override;
  void dispatch_backward(const DispatchBackwardRequest& request, Stream stream) override;
  [[nodiscard]] Received combine_backward(const CombineBackwardRequest& request, Stream stream) override;
  /// On both, or on none: ranks that do not agree on it have not changed the first.
  void set_placement(const Placement& placement, Stream stream) override;
  void set_batch_quotas(const BatchQuotasRequest& request, Stream stream) override;
  [[nodiscard]] const Placement& placement() const noexcept override { return many_->placement(); }
  [[nodiscard]] std::vector<std::int64_t> expert_tokens() const override;
  [[nodiscard]] std::vector<std::int64_t> lost_tokens() const override;
  [[nodiscard]] bool owns(const HandleState& state) const noexcept override;

  void wait() override;
  [[nodiscard]] Health poll() const noexcept override;
  [[nodiscard]] std::vector<int> suspects() const override;
  void abort() noexcept override { many_->abort(); }

  [[nodiscard]] WireBytes wire_bytes(const Handle& handle) const override;
  [[nodiscard]] std::int64_t shared_bytes() const noexcept override;
  [[nodiscard]] std::int64_t resident_bytes() const override;
  [[nodiscard]] int device_ordinal() const noexcept override { return many_->device_ordinal(); }
  [[nodiscard]] std::string describe_tuning(std::int64_t num_tokens) const override;

 private:
  /// For a call that brings its routing; `most_tokens` as in the request.
  [[nodiscard]] DispatcherImpl& for_tokens(std::int64_t most_tokens) const noexcept;
  /// For a call with a handle. A handle of neither is refused by `many`.
  [[nodiscard]] DispatcherImpl& for_handle(const std::shared_ptr<HandleState>& state) const noexcept;
  [[nodiscard]] DispatcherImpl& for_call(const DispatchRequest& request) const noexcept;

  std::string_view name_of_few_;
  std::string_view name_of_many_;
  std::unique_ptr<DispatcherImpl> few_;
  std::unique_ptr<DispatcherImpl> many_;
  std::int64_t most_few_;
};

}  // namespace epistle::automatic
