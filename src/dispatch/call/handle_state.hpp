// What every device knows of a prepared routing. Each hangs its own tables on it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "epistle/received.hpp"

#include "core/complaint.hpp"
#include "core/sole_owner.hpp"

namespace epistle {

class HandleState {
 public:
  HandleState() = default;
  virtual ~HandleState() = default;
  HandleState(const HandleState&) = delete;
  HandleState& operator=(const HandleState&) = delete;

  /// True when `stats` are complete; throws what prepare has found. Never waits.
  [[nodiscard]] virtual bool counts_are_known() = 0;
  /// Returns when they are.
  virtual void wait_for_counts() = 0;
  /// See Handle.
  [[nodiscard]] virtual std::vector<std::int32_t> read_expert_counts() = 0;
  [[nodiscard]] virtual IdsView routed_ids() const noexcept { return {}; }

  std::uint64_t dispatcher_id = 0;
  std::int64_t num_tokens = 0;  ///< that every call of this handle is made for
  RoutingStats stats;
  RowDescription description;
};

/// The handles of one dispatcher: hands them out and takes them back. One is free when nobody but the pool holds it.
template <typename State>
class HandlePool {
 public:
  /// A free handle. Null where `max_handles` are in use.
  [[nodiscard]] std::shared_ptr<State> acquire(std::int32_t max_handles) {
    for (const auto& state : states_) {
      if (is_sole_owner(state)) return state;
    }
    if (states_.size() >= static_cast<std::size_t>(max_handles)) return nullptr;
    states_.push_back(std::make_shared<State>());
    return states_.back();
  }

 private:
  std::vector<std::shared_ptr<State>> states_;
};

/// What to say where all handles are in use.
[[nodiscard]] std::string all_handles_in_use(std::int32_t max_handles);

}  // namespace epistle
