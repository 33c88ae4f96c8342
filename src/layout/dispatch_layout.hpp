// The dispatch layout: the one place that computes counts, places, padding and the sizes of records. Plain values,
// usable from host and device code. How many bytes that makes in a dispatcher's buffers: buffer_plan.hpp.
#pragma once

#include <cstdint>

#include "epistle/types.hpp"

#include "layout/scale_places.hpp"

namespace epistle {

/// Which rank holds which expert: contiguous blocks, the first (num_experts mod num_ranks) ranks hold one more. What
/// takes a division is computed once: kernels ask often.
class ExpertPartition {
 public:
  constexpr ExpertPartition() = default;
  EPISTLE_HOST_DEVICE constexpr ExpertPartition(std::int32_t experts, std::int32_t ranks) noexcept
      : num_experts(experts), num_ranks(ranks), base_(experts / ranks), extra_(experts % ranks) {}

  std::int32_t num_experts = 0;
  std::int32_t num_ranks = 1;

  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t first_expert(std::int32_t rank) const noexcept {
    return rank * base_ + (rank < extra_ ? rank : extra_);
  }
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t num_local_experts(std::int32_t rank) const noexcept {
    return base_ + (rank < extra_ ? 1 : 0);
  }
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t max_local_experts() const noexcept {
    return num_local_experts(0);
  }
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t rank_of(std::int32_t expert) const noexcept {
    const std::int32_t wide_end = extra_ * (base_ + 1);
    return expert < wide_end ? expert / (base_ + 1) : extra_ + (expert - wide_end) / base_;
  }

 private:
  std::int32_t base_ = 0;   ///< experts of every rank
  std::int32_t extra_ = 0;  ///< ranks with one more
};

/// Everything the layout depends on. The same on all ranks.
struct LayoutParams {
  std::int32_t num_ranks = 1;
  std::int32_t domain_size = 0;  ///< ranks of a domain; 0 = all ranks are in one
  bool spans_hosts = false;      ///< ranks of other domains may be out of reach
  /// Whose rows lie together: experts, or slots where experts are placed. Then an "expert" is a slot wherever rows have
  /// places, and ids are slots from where they are read.
  std::int32_t num_experts = 0;
  std::int32_t top_k = 0;
  std::int64_t max_tokens = 0;
  std::int64_t row_bytes = 0;    ///< as rows travel
  std::int64_t scale_bytes = 0;  ///< per row
  ScaleOrder scale_order = ScaleOrder::kRows;
  bool quantises = false;      ///< rows of bf16 become fp8 on their way
  bool powers_of_two = false;  ///< their scales
  ScaleFormat scale_format = ScaleFormat::kFp32;
  std::int64_t combine_row_bytes = 0;  ///< 0 = nothing is ever combined
  OutputLayout layout = OutputLayout::kTokenMajor;
  std::int32_t alignment = 1;
  SizingMode sizing = SizingMode::kExact;
  std::int64_t capacity_rows = 0;
  SumOrder order = SumOrder::kHierarchical;
  std::int32_t num_buffers = 1;  ///< copies of what calls receive into
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
  EPISTLE_HOST_DEVICE constexpr explicit DispatchLayout(const LayoutParams& params) noexcept
      : params_(params), partition_(params.num_experts, params.num_ranks) {}

  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr const LayoutParams& params() const noexcept { return params_; }
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr ExpertPartition partition() const noexcept { return partition_; }
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr bool token_major() const noexcept {
    return params_.layout == OutputLayout::kTokenMajor;
  }
  /// Whether combine can bring back one row per (token, rank): a token row is all that its rank has for it, and rows of
  /// experts can be summed there first unless sums are flat.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr bool can_combine_per_rank() const noexcept {
    return token_major() || params_.order != SumOrder::kFlat;
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

  /// Whether every routing fits, so that nothing can be dropped or refused for its size.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr bool fits_any_routing() const noexcept {
    if (params_.layout == OutputLayout::kExpertBlocks) {
      return params_.capacity_rows >= params_.max_tokens * params_.num_ranks;
    }
    return row_limit() >= max_output_rows_unlimited();
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

  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t num_domains() const noexcept {
    return params_.domain_size > 0 ? params_.num_ranks / params_.domain_size : 1;
  }
  /// Most distinct domains that a token can go to.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t max_domains_per_token() const noexcept {
    return params_.top_k < num_domains() ? params_.top_k : num_domains();
  }

  /// Most distinct ranks other than its own that a token can go to.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t max_other_ranks_per_token() const noexcept {
    return params_.top_k < params_.num_ranks - 1 ? params_.top_k : params_.num_ranks - 1;
  }

  // ---- Bytes ------------------------------------------------------------------------------------------------------

  /// Of a row on its way to its experts: backward passes move rows of the combine type.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t widest_row_bytes() const noexcept {
    return params_.row_bytes > params_.combine_row_bytes ? params_.row_bytes : params_.combine_row_bytes;
  }

  /// Where the scales of a rank's `num_rows` output rows lie in its kReceiveScales.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr ScalePlaces scale_places(std::int64_t num_rows) const noexcept {
    const std::int64_t rows_per_block = params_.layout == OutputLayout::kExpertBlocks ? params_.capacity_rows : 0;
    return {params_.scale_order, params_.scale_bytes, num_rows, rows_per_block};
  }

  /// fp32 weights that describe one output row.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t weights_per_row() const noexcept {
    return token_major() ? params_.top_k : 1;
  }

  /// Bytes of one record of a received row.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t record_bytes() const noexcept {
    return token_major() ? static_cast<std::int64_t>(sizeof(TokenRecordHeader)) + params_.top_k * 8
                         : static_cast<std::int64_t>(sizeof(RowRecord));
  }

  /// Bytes of what a sender tells about one (token, rank) pair: TokenRecordHeader, then for each top-k position the
  /// local expert (token_major) or the output row (expert layouts; on a device only) and the weight. Of a (token,
  /// domain) pair the same with the expert.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t pair_record_bytes() const noexcept {
    return static_cast<std::int64_t>(sizeof(TokenRecordHeader)) + static_cast<std::int64_t>(params_.top_k) * 8;
  }

  // ---- Control section: generations of the counts that prepare exchanges -------------------------------------------

  /// int32 entries of one generation. First round: tokens for each rank, assignments for each expert, tokens in all.
  /// Second round, when places are known: pairs that fit for each rank, drops for each expert.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t counts_entries() const noexcept {
    return 2 * (static_cast<std::int64_t>(params_.num_ranks) + static_cast<std::int64_t>(params_.num_experts)) + 1;
  }
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t counts_offset(std::uint64_t generation) const noexcept {
    return static_cast<std::int64_t>(generation % kNumGenerations) * counts_entries() * kCountBytes;
  }

  /// Of what ranks publish, the counts among it: one is read while the next is written.
  static constexpr std::uint64_t kNumGenerations = 2;
  static constexpr std::int64_t kCountBytes = sizeof(std::int32_t);

 private:
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t max_output_rows_unlimited() const noexcept {
    const std::int64_t rows = params_.max_tokens * params_.num_ranks * max_rows_per_token();
    if (params_.layout != OutputLayout::kExpertMajor) return rows;
    return rows + static_cast<std::int64_t>(partition().max_local_experts()) * (params_.alignment - 1);
  }

  LayoutParams params_;
  ExpertPartition partition_;
};

}  // namespace epistle
