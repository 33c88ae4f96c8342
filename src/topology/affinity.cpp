#include "topology/affinity.hpp"

namespace epistle {

ScopedBinding::ScopedBinding(const BindingShare& share) {
  CPU_ZERO(&before_);
  if (::sched_getaffinity(0, sizeof(before_), &before_) != 0) return;
  const int units_per_share = CPU_COUNT(&before_) / share.num_shares;
  if (units_per_share == 0 || units_per_share < share.min_units) return;
  cpu_set_t units;
  CPU_ZERO(&units);
  int position = 0;
  for (int unit = 0; unit < CPU_SETSIZE; ++unit) {
    if (!CPU_ISSET(unit, &before_)) continue;
    if (position / units_per_share == share.idx) CPU_SET(unit, &units);
    ++position;
  }
  bound_ = ::sched_setaffinity(0, sizeof(units), &units) == 0;
}

ScopedBinding::~ScopedBinding() {
  if (bound_) ::sched_setaffinity(0, sizeof(before_), &before_);
}

}  // namespace epistle
