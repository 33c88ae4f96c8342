// The dispatch layout: the one place that computes counts, offsets, padding and buffer bytes. Plain values, usable from
// host and device code; the planner uses the same object as the dispatchers, so what it predicts is what is allocated.
#pragma once

#include <cstdint>

#include "epistle/types.hpp"

namespace epistle {

/// Which rank holds which expert: contiguous blocks, the first (num_experts mod num_ranks) ranks hold one more.
struct ExpertPartition {
  std::int32_t num_experts = 0;
  std::int32_t num_ranks = 1;

  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t first_expert(std::int32_t rank) const noexcept {
    const std::int32_t base = num_experts / num_ranks;
    const std::int32_t extra = num_experts % num_ranks;
    return rank * base + (rank < extra ? rank : extra);
  }
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t num_local_experts(std::int32_t rank) const noexcept {
    return num_experts / num_ranks + (rank < num_experts % num_ranks ? 1 : 0);
  }
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t max_local_experts() const noexcept {
    return num_local_experts(0);
  }
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t rank_of(std::int32_t expert) const noexcept {
    const std::int32_t base = num_experts / num_ranks;
    const std::int32_t extra = num_experts % num_ranks;
    const std::int32_t wide_end = extra * (base + 1);
    return expert < wide_end ? expert / (base + 1) : extra + (expert - wide_end) / base;
  }
};

/// How a dispatcher moves rows; decides which buffers it needs.
enum class Transport : std::int32_t {
  kReference,       ///< every rank publishes its whole input
  kAllToAll,        ///< packed send buffer, all-to-all-v, receive buffer
  kDirect,          ///< senders write into the receiver's rows
  kDevice,          ///< the same on a GPU; hierarchical sums of expert rows are written into the source's stage
  kDeviceAllToAll,  ///< kAllToAll on a GPU; dispatch sends one row per (token, rank) in every layout
};

/// Everything the layout depends on. The same on all ranks.
struct LayoutParams {
  std::int32_t num_ranks = 1;
  std::int32_t num_experts = 0;
  std::int32_t top_k = 0;
  std::int64_t max_tokens = 0;
  std::int64_t row_bytes = 0;
  std::int64_t scale_bytes = 0;        ///< per row
  std::int64_t combine_row_bytes = 0;  ///< 0 = nothing is ever combined
  OutputLayout layout = OutputLayout::kTokenMajor;
  std::int32_t alignment = 1;
  SizingMode sizing = SizingMode::kExact;
  std::int64_t capacity_rows = 0;
  SumOrder order = SumOrder::kHierarchical;
  std::int32_t num_buffers = 1;  ///< copies of what calls receive into
  Transport transport = Transport::kDirect;
  std::int64_t page_bytes = 4096;  ///< granularity of memory commitment
  std::int64_t control_bytes = 0;  ///< of kControl where the transport has a layout of its own there (on a device)
};

/// The buffers of one rank.
enum class BufferSection : std::int32_t {
  kControl,      ///< counts that prepare exchanges; on a device signals too
  kRecords,      ///< descriptions of received rows
  kReceiveRows,  ///< dispatch output
  kReceiveScales,
  kCombineRows,  ///< expert outputs, read by the ranks the tokens came from
  kGradWeights,  ///< gradients of the weights, likewise
  kSendRows,     ///< packed rows on their way (alltoall), the whole input (reference)
  kSendScales,
  kStageRows,  ///< rows as the all-to-all-v delivered them, before they are sorted or summed (alltoall)
  kStageScales,
};
inline constexpr std::int32_t kNumBufferSections = 10;

/// The rows that calls need on one rank; buffers are committed for the largest of each.
struct RowDemand {
  std::int64_t tokens = 0;        ///< tokens this rank routes
  std::int64_t output_rows = 0;   ///< rows of the output layout, padding included
  std::int64_t grad_rows = 0;     ///< output rows for which gradients of the weights are asked; on a device all of them
  std::int64_t send_rows = 0;     ///< rows this rank packs: one per (token, rank), or per (token, expert) where the
                                  ///< transport sends those. kDeviceAllToAll: (token, expert) rows that other
                                  ///< ranks send back, where combine returns those
  std::int64_t receive_rows = 0;  ///< rows this rank is sent, counted likewise. kDeviceAllToAll: places in what it
                                  ///< receives, and what it returns in combine, whichever is more
  std::int64_t send_pairs = 0;    ///< (token, rank) pairs this rank sends; on a device: to other ranks only
  std::int64_t receive_pairs = 0;  ///< (token, rank) pairs this rank is sent

  EPISTLE_HOST_DEVICE constexpr void raise_to(const RowDemand& other) noexcept {
    tokens = tokens > other.tokens ? tokens : other.tokens;
    output_rows = output_rows > other.output_rows ? output_rows : other.output_rows;
    grad_rows = grad_rows > other.grad_rows ? grad_rows : other.grad_rows;
    send_rows = send_rows > other.send_rows ? send_rows : other.send_rows;
    receive_rows = receive_rows > other.receive_rows ? receive_rows : other.receive_rows;
    send_pairs = send_pairs > other.send_pairs ? send_pairs : other.send_pairs;
    receive_pairs = receive_pairs > other.receive_pairs ? receive_pairs : other.receive_pairs;
  }
};

/// Describes one output row (expert_major, expert_blocks). Written by the sender.
struct RowRecord {
  std::int32_t src_rank = -1;  ///< -1 at padding
  std::int32_t src_token = -1;
  std::int32_t topk_idx = -1;     ///< position in the token's top-k
  std::int32_t primary_row = -1;  ///< the row of the same token on this rank that the sender writes
  std::int32_t next_row = -1;     ///< the token's next row on this rank in top-k order; -1 = last
  float weight = 0.0F;
};

/// Token-major record: {src_rank, src_token} followed by top_k local expert ids and top_k weights.
struct TokenRecordHeader {
  std::int32_t src_rank = -1;
  std::int32_t src_token = -1;
};

class DispatchLayout {
 public:
  DispatchLayout() = default;
  EPISTLE_HOST_DEVICE constexpr explicit DispatchLayout(const LayoutParams& params) noexcept : params_(params) {}

  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr const LayoutParams& params() const noexcept { return params_; }
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr ExpertPartition partition() const noexcept {
    return {params_.num_experts, params_.num_ranks};
  }
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr bool token_major() const noexcept {
    return params_.layout == OutputLayout::kTokenMajor;
  }

  // ---- Rows -------------------------------------------------------------------------------------------------------

  /// Rows that a group of `count` rows takes in the output: padded to the alignment, or the fixed slots.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t group_rows(std::int64_t count) const noexcept {
    if (params_.layout == OutputLayout::kExpertBlocks) return params_.capacity_rows;
    const std::int64_t alignment = params_.layout == OutputLayout::kExpertMajor ? params_.alignment : 1;
    return (count + alignment - 1) / alignment * alignment;
  }

  /// Output rows at and beyond this index do not fit (token_major and expert_major under kCapacity).
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t row_limit() const noexcept {
    if (params_.layout == OutputLayout::kExpertBlocks) return params_.capacity_rows * partition().max_local_experts();
    return params_.sizing == SizingMode::kCapacity ? params_.capacity_rows : max_output_rows_unlimited();
  }

  /// Output rows on one rank from its group counts [num_local_experts] (expert layouts); writes group_begin
  /// [num_local_experts + 1]. Under kCapacity the result is cut at, or filled up to, the static size.
  EPISTLE_HOST_DEVICE constexpr std::int64_t expert_group_begins(const std::int64_t* counts,
                                                                 std::int32_t num_local_experts,
                                                                 std::int64_t* group_begin) const noexcept {
    std::int64_t row = 0;
    for (std::int32_t expert = 0; expert < num_local_experts; ++expert) {
      group_begin[expert] = row;
      row += group_rows(counts[expert]);
    }
    group_begin[num_local_experts] = row;
    return static_output_rows(row);
  }

  /// Of `count` rows that begin at `idx_in_group` of a group, how many have a place. Rows that do not fit are always
  /// the last ones.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t kept_rows(std::int64_t group_begin,
                                                                     std::int64_t idx_in_group,
                                                                     std::int64_t count) const noexcept {
    if (params_.layout != OutputLayout::kExpertBlocks && params_.sizing == SizingMode::kExact) return count;
    const std::int64_t end =
        params_.layout == OutputLayout::kExpertBlocks ? params_.capacity_rows : params_.capacity_rows - group_begin;
    const std::int64_t room = end - idx_in_group;
    return room < 0 ? 0 : room < count ? room : count;
  }

  /// Rows of the output when its content takes `rows`: kCapacity has one size, whatever the content.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t static_output_rows(std::int64_t rows) const noexcept {
    if (params_.layout == OutputLayout::kExpertBlocks || params_.sizing == SizingMode::kExact) return rows;
    return params_.capacity_rows;
  }

  /// Most output rows that any rank can ever need.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t max_output_rows() const noexcept {
    return params_.sizing == SizingMode::kCapacity || params_.layout == OutputLayout::kExpertBlocks
               ? row_limit()
               : max_output_rows_unlimited();
  }

  /// Most rows that one rank's tokens can put on one rank: 1 per token in token_major, else one per local expert.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t max_rows_per_token() const noexcept {
    if (token_major()) return 1;
    const std::int32_t local = partition().max_local_experts();
    return params_.top_k < local ? params_.top_k : local;
  }

  /// Most distinct ranks that a token can go to.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t max_ranks_per_token() const noexcept {
    return params_.top_k < params_.num_ranks ? params_.top_k : params_.num_ranks;
  }

  // ---- Bytes ------------------------------------------------------------------------------------------------------

  /// fp32 weights that describe one output row.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t weights_per_row() const noexcept {
    return token_major() ? params_.top_k : 1;
  }

  /// Bytes of one record of a received row.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t record_bytes() const noexcept {
    return token_major() ? static_cast<std::int64_t>(sizeof(TokenRecordHeader)) + params_.top_k * 8
                         : static_cast<std::int64_t>(sizeof(RowRecord));
  }

  /// Bytes that one copy of `section` needs for `demand`, rounded up to pages.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t section_bytes(BufferSection section,
                                                                         const RowDemand& demand) const noexcept {
    return round_to_page(section_content_bytes(section, demand));
  }

  /// How often a section is there: what a lease shows is there once per buffer.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t section_copies(BufferSection section) const noexcept {
    const bool is_leased = section == BufferSection::kReceiveRows || section == BufferSection::kReceiveScales ||
                           section == BufferSection::kCombineRows;
    return is_leased ? params_.num_buffers : 1;
  }

  /// Bytes from one copy of a section to the next.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t section_stride(BufferSection section) const noexcept {
    return section_bytes(section, max_demand());
  }

  /// Bytes committed on a rank for `demand`: the sum of its sections.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t buffer_bytes(const RowDemand& demand) const noexcept {
    std::int64_t bytes = 0;
    for (std::int32_t idx = 0; idx < kNumBufferSections; ++idx) {
      const auto section = static_cast<BufferSection>(idx);
      bytes += section_bytes(section, demand) * section_copies(section);
    }
    return bytes;
  }

  /// The largest demand that any routing within the parameters can make.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr RowDemand max_demand() const noexcept {
    RowDemand demand;
    const std::int64_t sent_per_token =
        sends_per_expert() ? static_cast<std::int64_t>(params_.top_k) : max_ranks_per_token();
    const std::int64_t received_per_token = sends_per_expert() ? max_rows_per_token() : 1;
    demand.tokens = params_.max_tokens;
    demand.output_rows = max_output_rows();
    demand.grad_rows = demand.output_rows;
    demand.send_rows = params_.max_tokens * sent_per_token;
    demand.receive_rows = params_.max_tokens * params_.num_ranks * received_per_token;
    if (params_.transport == Transport::kDeviceAllToAll && !combines_per_rank()) {
      demand.send_rows = params_.num_ranks > 1 ? params_.max_tokens * params_.top_k : 0;
      demand.receive_rows = params_.max_tokens * params_.num_ranks * max_rows_per_token();
    }
    demand.send_pairs = params_.max_tokens * (on_device() ? max_other_ranks_per_token() : max_ranks_per_token());
    demand.receive_pairs = params_.max_tokens * params_.num_ranks;
    return demand;
  }

  /// What is committed when a dispatcher is created: under kCapacity everything, so that no later call allocates; but
  /// on the host not the gradients of the weights.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr RowDemand initial_demand() const noexcept {
    RowDemand demand = max_demand();
    if (!on_device()) demand.grad_rows = 0;
    if (params_.sizing == SizingMode::kCapacity) return demand;
    // Peers write records before the host has seen any count, so a device has room for all of them from the start.
    RowDemand records;
    if (on_device()) records.receive_pairs = demand.receive_pairs;
    return records;
  }

  /// True when the transport sends one row per (token, expert) instead of one per (token, rank).
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr bool sends_per_expert() const noexcept {
    return params_.transport == Transport::kAllToAll && !token_major();
  }

  /// True when combine brings back one partial sum per (token, rank) instead of one row per (token, expert).
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr bool combines_per_rank() const noexcept {
    return token_major() ||
           ((params_.transport == Transport::kAllToAll || on_device()) && params_.order != SumOrder::kFlat);
  }

  /// True when the experts' ranks sum over a token's experts before the rows travel.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr bool returns_partial_sums() const noexcept {
    return combines_per_rank() && !token_major();
  }

  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr bool on_device() const noexcept {
    return params_.transport == Transport::kDevice || params_.transport == Transport::kDeviceAllToAll;
  }

  /// Most distinct ranks other than its own that a token can go to.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t max_other_ranks_per_token() const noexcept {
    return params_.top_k < params_.num_ranks - 1 ? params_.top_k : params_.num_ranks - 1;
  }

  /// Bytes of what a sender tells about one (token, rank) pair: TokenRecordHeader, then for each top-k position the
  /// local expert (token_major) or the output row (expert layouts; on a device only) and the weight.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t pair_record_bytes() const noexcept {
    return static_cast<std::int64_t>(sizeof(TokenRecordHeader)) + static_cast<std::int64_t>(params_.top_k) * 8;
  }

  /// Offset of a section's first copy in a rank's address range, placed for the largest demand.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t section_offset(BufferSection section) const noexcept {
    std::int64_t offset = 0;
    for (std::int32_t before = 0; before < static_cast<std::int32_t>(section); ++before) {
      const auto section_before = static_cast<BufferSection>(before);
      offset += section_stride(section_before) * section_copies(section_before);
    }
    return offset;
  }

  /// Bytes of address range a rank reserves (committed only as needed).
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t reserved_bytes() const noexcept {
    return buffer_bytes(max_demand());
  }

  // ---- Control section: two generations of the counts that prepare exchanges, so that one can be read while the next
  //      is written ---------------------------------------------------------------------------------------------------

  /// int32 entries of one generation. First round: tokens for each rank, assignments for each expert, tokens in all.
  /// Second round, when places are known: pairs that fit for each rank, drops for each expert.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t counts_entries() const noexcept {
    return 2 * (static_cast<std::int64_t>(params_.num_ranks) + static_cast<std::int64_t>(params_.num_experts)) + 1;
  }
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t counts_offset(std::uint64_t generation) const noexcept {
    return static_cast<std::int64_t>(generation & 1) * counts_entries() * kCountBytes;
  }

  static constexpr std::int64_t kCountBytes = sizeof(std::int32_t);

 private:
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t max_output_rows_unlimited() const noexcept {
    const std::int64_t rows = params_.max_tokens * params_.num_ranks * max_rows_per_token();
    if (params_.layout != OutputLayout::kExpertMajor) return rows;
    return rows + static_cast<std::int64_t>(partition().max_local_experts()) * (params_.alignment - 1);
  }

  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t round_to_page(std::int64_t bytes) const noexcept {
    return (bytes + params_.page_bytes - 1) / params_.page_bytes * params_.page_bytes;
  }

  [[nodiscard]] EPISTLE_HOST_DEVICE static constexpr std::int64_t larger(std::int64_t a, std::int64_t b) noexcept {
    return a > b ? a : b;
  }

  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t section_content_bytes(
      BufferSection section, const RowDemand& demand) const noexcept {
    const bool alltoall = params_.transport == Transport::kAllToAll;
    const bool reference = params_.transport == Transport::kReference;
    const bool device_alltoall = params_.transport == Transport::kDeviceAllToAll;
    // Backward dispatches move rows of the combine type.
    const std::int64_t widest_row_bytes = larger(params_.row_bytes, params_.combine_row_bytes);
    const bool sums_before_wire = params_.order != SumOrder::kFlat;
    switch (section) {
      case BufferSection::kControl:
        return on_device() ? params_.control_bytes : 2 * counts_entries() * kCountBytes;
      case BufferSection::kRecords:
        return on_device() ? demand.receive_pairs * pair_record_bytes() : demand.output_rows * record_bytes();
      case BufferSection::kReceiveRows:
        return demand.output_rows * params_.row_bytes;
      case BufferSection::kReceiveScales:
        return demand.output_rows * params_.scale_bytes;
      case BufferSection::kCombineRows:
        return demand.output_rows * params_.combine_row_bytes;
      case BufferSection::kGradWeights:
        return demand.grad_rows * weights_per_row() * static_cast<std::int64_t>(sizeof(float));
      case BufferSection::kSendRows: {
        if (reference) return demand.tokens * widest_row_bytes;
        if (device_alltoall) {
          return larger(demand.send_pairs * widest_row_bytes,
                        token_major() ? 0 : demand.receive_rows * params_.combine_row_bytes);
        }
        if (!alltoall) return 0;
        // token_major rows already lie in the order in which combine sends them.
        const std::int64_t combined_rows = token_major()      ? 0
                                           : sums_before_wire ? demand.receive_pairs
                                                              : demand.receive_rows;
        return larger(demand.send_rows * widest_row_bytes, combined_rows * params_.combine_row_bytes);
      }
      case BufferSection::kSendScales:
        if (reference) return demand.tokens * params_.scale_bytes;
        if (device_alltoall) return demand.send_pairs * params_.scale_bytes;
        return alltoall ? demand.send_rows * params_.scale_bytes : 0;
      case BufferSection::kStageRows: {
        if (device_alltoall) {
          return larger(token_major() ? 0 : demand.receive_rows * widest_row_bytes,
                        (combines_per_rank() ? demand.send_pairs : demand.send_rows) * params_.combine_row_bytes);
        }
        // Token rows are read where they lie.
        if (on_device()) return returns_partial_sums() ? demand.send_pairs * params_.combine_row_bytes : 0;
        if (!alltoall) return 0;
        const std::int64_t dispatched_rows = token_major() ? 0 : demand.receive_rows;
        const std::int64_t combined_rows = token_major() || sums_before_wire ? demand.send_pairs : demand.send_rows;
        return larger(dispatched_rows * widest_row_bytes, combined_rows * params_.combine_row_bytes);
      }
      case BufferSection::kStageScales:
        return (alltoall || device_alltoall) && !token_major() ? demand.receive_rows * params_.scale_bytes : 0;
    }
    return 0;
  }

  LayoutParams params_;
};

}  // namespace epistle
