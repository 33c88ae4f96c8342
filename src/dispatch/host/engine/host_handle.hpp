// What a handle knows on the host: one prepared routing, from the sender's and from the receiver's side.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "dispatch/call/handle_state.hpp"
#include "layout/buffer_plan.hpp"
#include "layout/layout_tables.hpp"

namespace epistle::host {

/// One row that a token sends: to a rank that holds at least one of its experts.
struct SendEntry {
  std::int32_t dst_rank = 0;
  std::int32_t row = 0;        ///< output row there; in expert layouts the first of the token's rows (in top-k order)
  float weight_sum = 0.0F;     ///< of the token's experts there, in top-k order
  std::int32_t sum_order = 0;  ///< combine adds a token's ranks in ascending order of this
};

/// Where the assignments of a rank's tokens go: of all its tokens and to all ranks, or of those that a rank of another
/// domain passes on.
struct TokenTable {
  std::vector<std::int32_t> tokens;      ///< their numbers on their rank; empty: 0, 1, 2, ...
  std::vector<std::int32_t> expert_ids;  ///< [num_tokens, top_k]
  std::vector<float> weights;            ///< [num_tokens, top_k]
  std::vector<std::int32_t> dst_row;     ///< [num_tokens, top_k] output row at the expert's rank; -1 = none or dropped
  std::vector<std::int32_t> send_of;     ///< [num_tokens, top_k] entry of `sends`, where dst_row is one
  std::vector<SendEntry> sends;          ///< by token; per token in the order of the ranks' first appearance
  std::vector<std::int32_t> send_begin;  ///< [num_tokens + 1] into `sends`

  [[nodiscard]] std::int32_t token_number(std::size_t idx) const noexcept {
    return tokens.empty() ? static_cast<std::int32_t>(idx) : tokens[idx];
  }
};

/// (token, domain) pairs of one rank that another passes on, those included whose rows may be dropped: how many, and
/// where their numbers begin on either side.
struct PairRun {
  int peer = -1;  ///< the other end of them; -1 = nobody, and there are none
  std::int32_t num = 0;
  std::int64_t first_sent = 0;    ///< among those of the rank whose tokens they are of
  std::int64_t first_passed = 0;  ///< among those that the other one passes on
};

/// What a mover keeps of a routing; stays with the handle when that is used again.
class MoverState {
 public:
  MoverState() = default;
  virtual ~MoverState() = default;
  MoverState(const MoverState&) = delete;
  MoverState& operator=(const MoverState&) = delete;
};

class HostHandle final : public HandleState, public TokenTable {
 public:
  // prepare leaves nothing open.
  [[nodiscard]] bool counts_are_known() override { return true; }
  void wait_for_counts() override {}
  [[nodiscard]] std::vector<std::int32_t> read_expert_counts() override { return expert_counts; }

  /// Counts prepares; equal on all ranks.
  std::uint64_t handle_id = 0;
  /// In which its routing was published, where it was (see PublishedRouting).
  std::uint64_t exchange = 0;
  LayoutTables tables;
  RowDemand demand;

  // Of dispatchers that cross domains.
  std::vector<PairRun> sent_pairs;    ///< [num_domains] this rank's own, to who passes them on there
  std::vector<PairRun> passed_pairs;  ///< by source (DomainPeers::sources) what this rank passes on
  std::unique_ptr<MoverState> mover_state;

  // Both sides: (token, rank) pairs that fit. Where routing is published, of this rank's as source or as destination
  // only.
  std::vector<std::int32_t> pairs;  ///< [num_ranks (source), num_ranks (destination)]
  std::size_t num_ranks = 1;

  // Receiver's side.
  std::vector<RowRecord> records;  ///< [num_rows]; expert layouts
  std::vector<std::int32_t> src_rank;
  std::vector<std::int32_t> src_token;
  std::vector<std::int32_t> local_experts;  ///< [num_rows, top_k]; token_major
  std::vector<std::int32_t> row_expert;     ///< [num_rows]; expert layouts
  std::vector<float> row_weights;           ///< [num_rows, top_k] or [num_rows]
  std::vector<std::int32_t> expert_counts;
  std::vector<std::int32_t> expert_begin;
  std::vector<std::int32_t> expert_dropped;
  /// First rows of the received pairs by (src_rank, src_token); expert layouts, only where a mover asks for it.
  std::vector<std::int32_t> pair_rows;
  /// The how manieth pair for its rank each entry of `sends` is; likewise.
  std::vector<std::int32_t> pair_of_send;

  [[nodiscard]] std::int32_t num_pairs(int source, int destination) const noexcept {
    return pairs[pair_idx(source, destination)];
  }
  void set_num_pairs(int source, int destination, std::int32_t num_pairs) noexcept {
    pairs[pair_idx(source, destination)] = num_pairs;
  }

 private:
  [[nodiscard]] std::size_t pair_idx(int source, int destination) const noexcept {
    return static_cast<std::size_t>(source) * num_ranks + static_cast<std::size_t>(destination);
  }
};

}  // namespace epistle::host
