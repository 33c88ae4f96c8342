// HostEngine: what ranks tell each other of their buffers, where the mover sends before all have agreed.
#include <algorithm>

#include "dispatch/host/engine/host_engine.hpp"
#include "dispatch/host/engine/prefetch.hpp"

namespace epistle::host {

void HostEngine::tell_of_buffers(std::int32_t used) {
  // That of this call, if any, is taken already.
  const std::shared_ptr<RowBuffer> free = buffers_.find_free();
  context_.published_buffers(context_.rank, context_.num_exchanges) = {
      .used = used, .promised = free != nullptr ? free->idx : PublishedBuffers::kNone};
}

void HostEngine::learn_of_buffers(const HostHandle& state, Ticket ticket) {
  last_handle_id_ = state.handle_id;
  // Where no other step came in between, the step itself has brought it: a line less from every rank.
  const bool is_announced = group_->last_step() == ticket;
  for (int peer = 0; peer < context_.num_ranks; ++peer) {
    std::int32_t& used = context_.buffer_of[static_cast<std::size_t>(peer)];
    if (is_announced || group_->is_masked(peer)) {
      used = is_announced ? group_->announced_buffer(peer) : 0;
    } else {
      used = context_.published_buffers(peer, context_.num_exchanges).used;
    }
  }
  ++context_.num_exchanges;
}

/// A dispatch is what follows a prepare.
void HostEngine::ask_for_promises() const {
  for (int peer = 0; peer < context_.num_ranks; ++peer) {
    if (group_->is_masked(peer)) continue;
    prefetch_lines(std::as_bytes(std::span(&context_.published_buffers(peer, context_.num_exchanges - 1), 1)));
  }
}

void HostEngine::learn_of_promises() {
  for (int peer = 0; peer < context_.num_ranks; ++peer) {
    // Who is masked out stands in nobody's way.
    promised_of_[static_cast<std::size_t>(peer)] =
        group_->is_masked(peer) ? 0 : context_.published_buffers(peer, context_.num_exchanges - 1).promised;
  }
}

HostEngine::SendOrder HostEngine::order_of_placing(const HostHandle& state) {
  // Rows of one handle have places of their own; those of two could meet in a buffer.
  if (state.handle_id != last_handle_id_) return SendOrder::kWhenAgreed;
  // Read no sooner than they are needed: most calls are followed by another than a dispatch. They stay as they are
  // until this rank arrives in the next exchange.
  learn_of_promises();
  // Told in the same exchange by all ranks, so all come to the same order.
  const bool all_promise =
      std::find(promised_of_.begin(), promised_of_.end(), PublishedBuffers::kNone) == promised_of_.end();
  return all_promise ? SendOrder::kAtOnce : SendOrder::kWhenAgreed;
}

std::shared_ptr<RowBuffer> HostEngine::promised_buffer() const {
  return buffers_.at(promised_of_[static_cast<std::size_t>(context_.rank)]);
}

}  // namespace epistle::host
