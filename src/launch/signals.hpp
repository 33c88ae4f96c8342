// Signals taken by a poll loop instead of a handler.
#pragma once

#include <csignal>
#include <initializer_list>
#include <optional>

#include "group/shared_memory.hpp"

namespace epistle {

/// While it lives, `signals` to the calling thread wait to be taken. Those that this process was told to ignore (nohup,
/// background jobs) stay ignored.
class SignalInbox {
 public:
  /// Throws kSystem.
  explicit SignalInbox(std::initializer_list<int> signals);
  ~SignalInbox();
  SignalInbox(const SignalInbox&) = delete;
  SignalInbox& operator=(const SignalInbox&) = delete;

  /// Becomes readable when a signal waits.
  [[nodiscard]] int fd() const noexcept { return fd_.get(); }
  [[nodiscard]] std::optional<int> take() noexcept;
  /// The mask from before, for new processes.
  [[nodiscard]] const sigset_t& previous_mask() const noexcept { return previous_mask_; }

 private:
  sigset_t previous_mask_{};
  UniqueFd fd_;
};

}  // namespace epistle
