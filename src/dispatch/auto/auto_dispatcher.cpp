#include "dispatch/auto/auto_dispatcher.hpp"

#include <algorithm>
#include <functional>

#include <fmt/format.h>

namespace epistle::automatic {
namespace {

std::vector<std::int64_t> sum_of(std::vector<std::int64_t> tokens, const std::vector<std::int64_t>& others) {
  std::transform(tokens.begin(), tokens.end(), others.begin(), tokens.begin(), std::plus<>());
  return tokens;
}

}  // namespace

AutoDispatcher::AutoDispatcher(DispatcherIdentity identity, Part few, Part many, std::int64_t most_few)
    : DispatcherImpl(std::move(identity)),
      name_of_few_(few.name),
      name_of_many_(many.name),
      few_(std::move(few.dispatcher)),
      many_(std::move(many.dispatcher)),
      most_few_(most_few) {}

// ---- Who takes a call -----------------------------------------------------------------------------------------------

DispatcherImpl& AutoDispatcher::for_tokens(std::int64_t most_tokens) const noexcept {
  const std::int64_t most = most_tokens == 0 ? identity().config.max_tokens : most_tokens;
  // What is no number of tokens is refused by the other, whose limits are those of the configuration.
  return few_ != nullptr && most >= 0 && most <= most_few_ ? *few_ : *many_;
}

DispatcherImpl& AutoDispatcher::for_handle(const std::shared_ptr<HandleState>& state) const noexcept {
  return few_ != nullptr && state != nullptr && few_->owns(*state) ? *few_ : *many_;
}

DispatcherImpl& AutoDispatcher::for_call(const DispatchRequest& request) const noexcept {
  return brings_ids(request) ? for_tokens(request.most_tokens) : for_handle(CallAccess::state(request.handle));
}

bool AutoDispatcher::owns(const HandleState& state) const noexcept {
  return many_->owns(state) || (few_ != nullptr && few_->owns(state));
}

// ---- Calls ----------------------------------------------------------------------------------------------------------

Handle AutoDispatcher::prepare(const PrepareRequest& request, Stream stream) {
  return for_tokens(request.most_tokens).prepare(request, stream);
}

Received AutoDispatcher::dispatch(const DispatchRequest& request, Stream stream) {
  return for_call(request).dispatch(request, stream);
}

Pending AutoDispatcher::dispatch_send(const DispatchRequest& request, Stream stream) {
  return for_call(request).dispatch_send(request, stream);
}

Received AutoDispatcher::dispatch_receive(Pending pending, Stream stream) {
  DispatcherImpl& dispatcher = for_handle(CallAccess::state(pending));
  return dispatcher.dispatch_receive(std::move(pending), stream);
}

void AutoDispatcher::combine(const CombineRequest& request, Stream stream) {
  for_handle(state_of(request)).combine(request, stream);
}

Pending AutoDispatcher::combine_send(const CombineRequest& request, Stream stream) {
  return for_handle(state_of(request)).combine_send(request, stream);
}

void AutoDispatcher::combine_receive(Pending pending, Stream stream) {
  DispatcherImpl& dispatcher = for_handle(CallAccess::state(pending));
  dispatcher.combine_receive(std::move(pending), stream);
}

void AutoDispatcher::dispatch_backward(const DispatchBackwardRequest& request, Stream stream) {
  for_handle(CallAccess::state(request.handle)).dispatch_backward(request, stream);
}

Received AutoDispatcher::combine_backward(const CombineBackwardRequest& request, Stream stream) {
  return for_handle(CallAccess::state(request.handle)).combine_backward(request, stream);
}

// ---- Placement ------------------------------------------------------------------------------------------------------

void AutoDispatcher::set_placement(const Placement& placement, Stream stream) {
  if (few_ != nullptr) few_->set_placement(placement, stream);
  many_->set_placement(placement, stream);
}

void AutoDispatcher::set_batch_quotas(const BatchQuotasRequest& request, Stream stream) {
  if (few_ != nullptr) few_->set_batch_quotas(request, stream);
  many_->set_batch_quotas(request, stream);
}

std::vector<std::int64_t> AutoDispatcher::expert_tokens() const {
  return few_ != nullptr ? sum_of(many_->expert_tokens(), few_->expert_tokens()) : many_->expert_tokens();
}

std::vector<std::int64_t> AutoDispatcher::lost_tokens() const {
  return few_ != nullptr ? sum_of(many_->lost_tokens(), few_->lost_tokens()) : many_->lost_tokens();
}

// ---- Questions ------------------------------------------------------------------------------------------------------

void AutoDispatcher::wait() {
  if (few_ != nullptr) few_->wait();
  many_->wait();
}

Health AutoDispatcher::poll() const noexcept {
  const Health health = few_ != nullptr ? few_->poll() : Health::kOk;
  return health != Health::kOk ? health : many_->poll();
}

std::vector<int> AutoDispatcher::suspects() const {
  std::vector<int> ranks = few_ != nullptr ? few_->suspects() : std::vector<int>{};
  return ranks.empty() ? many_->suspects() : ranks;
}

WireBytes AutoDispatcher::wire_bytes(const Handle& handle) const {
  return for_handle(CallAccess::state(handle)).wire_bytes(handle);
}

std::int64_t AutoDispatcher::shared_bytes() const noexcept {
  return many_->shared_bytes() + (few_ != nullptr ? few_->shared_bytes() : 0);
}

std::int64_t AutoDispatcher::resident_bytes() const {
  return many_->resident_bytes() + (few_ != nullptr ? few_->resident_bytes() : 0);
}

std::string AutoDispatcher::describe_tuning(std::int64_t num_tokens) const {
  const DispatcherImpl& chosen = for_tokens(num_tokens);
  const std::string_view name = &chosen == few_.get() ? name_of_few_ : name_of_many_;
  const std::string line = few_ == nullptr
                               ? fmt::format("every call by {}", name)
                               : fmt::format("calls of up to {} tokens by {}, larger ones by {}; {} tokens: {}",
                                             most_few_, name_of_few_, name_of_many_, num_tokens, name);
  return line + "\n" + chosen.describe_tuning(num_tokens);
}

}  // namespace epistle::automatic
