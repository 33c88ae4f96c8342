// Where threads run.
#pragma once

#include <sched.h>

namespace epistle {

struct BindingShare {
  int idx = 0;
  int num_shares = 1;
  int min_units = 1;  ///< fewer processing units in a share: nothing is bound
};

/// Binds the calling thread, and the threads it starts meanwhile, to one of several equal shares of the processing
/// units open to it; undone at the end of its life. Ranks that take turns waiting for each other are otherwise packed
/// onto one unit by some schedulers while another one idles.
class ScopedBinding {
 public:
  explicit ScopedBinding(const BindingShare& share);
  ~ScopedBinding();
  ScopedBinding(const ScopedBinding&) = delete;
  ScopedBinding& operator=(const ScopedBinding&) = delete;

  [[nodiscard]] bool bound() const noexcept { return bound_; }

 private:
  cpu_set_t before_;
  bool bound_ = false;
};

}  // namespace epistle
