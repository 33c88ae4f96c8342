// HostEngine where the mask of its group has changed: what the ranks share is made anew.
#include <algorithm>

#include "dispatch/host/engine/host_engine.hpp"

namespace epistle::host {

void HostEngine::renew() {
  // A rank that is left out may still be writing where it was told to before; and a failure may have left some ranks a
  // call ahead of others. So nothing that was shared is used again.
  open_ = {};
  buffers_ = {};
  handles_ = {};
  dispatcher_id_ = new_dispatcher_id();
  num_prepared_ = 0;
  last_handle_id_ = 0;
  std::fill(promised_of_.begin(), promised_of_.end(), PublishedBuffers::kNone);
  context_.renew();
  mover_->renew();
  buffers_ = make_buffers();
  compare_placements();
  mask_version_ = group_->mask_version();
}

void HostEngine::compare_placements() {
  differing_generation_ =
      context_.config.places_experts() ? newest_where_placements_differ(*group_, placement(), number_) : std::nullopt;
}

}  // namespace epistle::host
