#include "dispatch/call/handle_state.hpp"

#include <utility>

namespace epistle {
namespace {

HandleState& require(const std::shared_ptr<HandleState>& state) {
  if (state == nullptr) {
    throw Error(ErrorCode::kHandleMismatch, "the handle is empty (moved from, or never prepared); call prepare first");
  }
  return *state;
}

}  // namespace

std::shared_ptr<HandleState> HandlePool::acquire() {
  for (const auto& state : states_) {
    if (state.use_count() == 1) return state;
  }
  states_.push_back(std::make_shared<HandleState>());
  return states_.back();
}

Handle::Handle() = default;
Handle::~Handle() = default;
Handle::Handle(Handle&&) noexcept = default;
Handle& Handle::operator=(Handle&&) noexcept = default;
Handle::Handle(std::shared_ptr<HandleState> state) noexcept : state_(std::move(state)) {}
const RoutingStats& Handle::stats() const {
  require(state_).wait_for_counts();
  return state_->stats;
}
const DispatchOutput& Handle::output() const { return require(state_).output; }

}  // namespace epistle
