// The process between the launcher and the ranks. Whatever the ranks start, wrapper scripts' children and daemons
// included, is a descendant of the keeper, and comes to it (PR_SET_CHILD_SUBREAPER) when its own parent ends. So the
// keeper can end all of it when the launcher dies; and when the keeper dies, all of it comes to the launcher, which
// ends it. Only whoever kills both at once escapes them.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <sys/types.h>

#include "group/shared_memory.hpp"

namespace epistle {

class SignalInbox;

struct KeeperResult {
  int exit_code = 0;
  /// What else went wrong; an error where nothing else did.
  std::string complaint;
};

/// The keeper's end of the line to the launcher.
class Orders {
 public:
  explicit Orders(UniqueFd channel) noexcept : channel_(std::move(channel)) {}

  /// Becomes readable when there is an order, or the launcher is gone.
  [[nodiscard]] int fd() const noexcept { return channel_.get(); }
  /// The next signal that the launcher received.
  [[nodiscard]] std::optional<int> take() noexcept;
  [[nodiscard]] bool launcher_gone() const noexcept { return launcher_gone_; }

 private:
  UniqueFd channel_;
  bool launcher_gone_ = false;
};

/// The launcher's side.
class Keeper {
 public:
  /// Starts a process that runs `body`. An Error that `body` throws is thrown by wait(). Throws kSystem.
  explicit Keeper(const std::function<KeeperResult(Orders&)>& body);
  /// Kills the keeper, and what it kept, where it still runs.
  ~Keeper();
  Keeper(const Keeper&) = delete;
  Keeper& operator=(const Keeper&) = delete;

  /// Passes signals on until the keeper has ended. Throws what its body threw, and kSystem where it was killed; then
  /// every process that it kept has been killed.
  [[nodiscard]] KeeperResult wait(SignalInbox& signals);

 private:
  void end_what_is_left() noexcept;

  std::vector<pid_t> others_;  ///< children of this process that have nothing to do with the job
  int was_subreaper_ = 0;
  UniqueFd channel_;
  pid_t pid_ = -1;
};

}  // namespace epistle
