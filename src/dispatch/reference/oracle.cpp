#include "dispatch/reference/oracle.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "epistle/error.hpp"

#include "core/numeric.hpp"
#include "dispatch/reference/slots.hpp"

namespace epistle::reference {
namespace {

float round_to(DType dtype, float value) {
  std::array<std::byte, sizeof(float)> bits{};
  write_element(dtype, bits.data(), 0, value);
  return read_element(dtype, bits.data(), 0);
}

/// The slots that serve every entry, by source.
using SlotTables = std::vector<std::vector<SlotRef>>;

SlotTables slots_of(const ResolvedConfig& config, std::span<const RoutingTable> tables, const RoutingStep& step) {
  const Placement* placement = step.placement != nullptr ? step.placement : &config.placement;
  const auto is_masked = [&step](int rank) {
    return std::find(step.masked.begin(), step.masked.end(), rank) != step.masked.end();
  };
  SlotTables all;
  for (std::size_t src = 0; src < tables.size(); ++src) {
    const RoutingTable& table = tables[src];
    std::vector<SlotRef>& slots = all.emplace_back(static_cast<std::size_t>(table.num_tokens * table.top_k), kNowhere);
    for (std::size_t entry = 0; entry < slots.size(); ++entry) {
      const std::int32_t expert = table.expert_ids[entry];
      if (expert == kNoExpert || is_masked(static_cast<int>(src))) continue;
      slots[entry] = slot_of(config, static_cast<int>(tables.size()), placement, expert,
                             {.rank = static_cast<int>(src),
                              .token = static_cast<std::int64_t>(entry) / table.top_k,
                              .step_seed = step.step_seed});
      if (is_masked(slots[entry].rank)) slots[entry] = kNowhere;
    }
  }
  return all;
}

/// Rows in output order, as if there were room for all.
void list_token_rows(const SlotTables& slots, std::span<const RoutingTable> tables, int rank,
                     std::vector<OutputRow>& rows) {
  for (std::size_t src = 0; src < tables.size(); ++src) {
    const RoutingTable& table = tables[src];
    for (std::int64_t token = 0; token < table.num_tokens; ++token) {
      const auto* first = slots[src].data() + token * table.top_k;
      const bool is_here =
          std::any_of(first, first + table.top_k, [&](const SlotRef& slot) { return slot.rank == rank; });
      if (is_here) rows.push_back({static_cast<std::int32_t>(src), static_cast<std::int32_t>(token), -1});
    }
  }
}

/// The rows of every local expert, in output order.
std::vector<std::vector<OutputRow>> list_expert_rows(const SlotTables& slots, std::span<const RoutingTable> tables,
                                                     int rank, std::int32_t num_local) {
  std::vector<std::vector<OutputRow>> groups(static_cast<std::size_t>(num_local));
  for (std::size_t src = 0; src < tables.size(); ++src) {
    const RoutingTable& table = tables[src];
    for (std::int64_t token = 0; token < table.num_tokens; ++token) {
      for (std::int32_t position = 0; position < table.top_k; ++position) {
        const SlotRef& slot = slots[src][static_cast<std::size_t>(token * table.top_k + position)];
        if (slot.rank != rank) continue;
        groups[static_cast<std::size_t>(slot.local_slot)].push_back(
            {static_cast<std::int32_t>(src), static_cast<std::int32_t>(token), position});
      }
    }
  }
  return groups;
}

RankLayout rank_layout(const ResolvedConfig& config, const SlotTables& slots, std::span<const RoutingTable> tables,
                       int rank, std::int32_t num_local) {
  const auto capacity = static_cast<std::size_t>(config.capacity_rows);
  RankLayout result;
  if (config.layout == OutputLayout::kTokenMajor) {
    list_token_rows(slots, tables, rank, result.rows);
  } else {
    for (std::vector<OutputRow>& group : list_expert_rows(slots, tables, rank, num_local)) {
      if (config.layout == OutputLayout::kExpertBlocks) {
        group.resize(capacity);
      } else {
        const auto alignment = static_cast<std::size_t>(config.alignment);
        group.resize((group.size() + alignment - 1) / alignment * alignment);
      }
      result.expert_begin.push_back(static_cast<std::int32_t>(result.rows.size()));
      result.rows.insert(result.rows.end(), group.begin(), group.end());
    }
    result.expert_begin.push_back(static_cast<std::int32_t>(result.rows.size()));
  }
  if (config.sizing == SizingMode::kCapacity && config.layout != OutputLayout::kExpertBlocks) {
    result.rows.resize(capacity);
    for (std::int32_t& begin : result.expert_begin) begin = std::min(begin, static_cast<std::int32_t>(capacity));
  }
  return result;
}

}  // namespace

std::vector<RankLayout> layout_of(const ResolvedConfig& config, std::span<const RoutingTable> tables,
                                  const RoutingStep& step) {
  const Placement* placement = step.placement != nullptr ? step.placement : &config.placement;
  const SlotTables slots = slots_of(config, tables, step);
  const auto num_ranks = static_cast<int>(tables.size());
  const auto top_k = static_cast<std::size_t>(config.top_k);
  std::vector<RankLayout> ranks;
  for (std::size_t rank = 0; rank < tables.size(); ++rank) {
    const std::int32_t num_local = num_local_experts(config, num_ranks, placement, static_cast<int>(rank));
    ranks.push_back(rank_layout(config, slots, tables, static_cast<int>(rank), num_local));
    ranks.back().slots = slots[rank];
    ranks.back().expert_counts.assign(static_cast<std::size_t>(num_local), 0);
    ranks.back().expert_dropped.assign(static_cast<std::size_t>(num_local), 0);
  }
  for (std::size_t src = 0; src < tables.size(); ++src) {
    ranks[src].dst_row.assign(static_cast<std::size_t>(tables[src].num_tokens) * top_k, -1);
  }
  // Every row that made it into an output belongs to one assignment (expert layouts) or to all of the token's
  // assignments on that rank (token_major).
  for (std::size_t dst = 0; dst < tables.size(); ++dst) {
    for (std::size_t row = 0; row < ranks[dst].rows.size(); ++row) {
      const OutputRow& origin = ranks[dst].rows[row];
      if (origin.src_rank < 0) continue;
      const auto src = static_cast<std::size_t>(origin.src_rank);
      for (std::size_t position = 0; position < top_k; ++position) {
        const std::size_t entry = static_cast<std::size_t>(origin.src_token) * top_k + position;
        const bool belongs = config.layout == OutputLayout::kTokenMajor
                                 ? slots[src][entry].rank == static_cast<int>(dst)
                                 : static_cast<std::int32_t>(position) == origin.topk_idx;
        if (belongs) ranks[src].dst_row[entry] = static_cast<std::int32_t>(row);
      }
    }
  }
  for (std::size_t src = 0; src < tables.size(); ++src) {
    for (std::size_t entry = 0; entry < ranks[src].dst_row.size(); ++entry) {
      const SlotRef& slot = slots[src][entry];
      if (slot == kNowhere) continue;
      RankLayout& receiver = ranks[static_cast<std::size_t>(slot.rank)];
      const auto local = static_cast<std::size_t>(slot.local_slot);
      ++(ranks[src].dst_row[entry] >= 0 ? receiver.expert_counts : receiver.expert_dropped)[local];
    }
  }
  return ranks;
}

namespace {

/// One token's sums, as the text of the contract has them.
class TokenSum {
 public:
  TokenSum(const ResolvedConfig& config, const TokenPlaces& token, const RowReader& read_row, bool weighted)
      : config_(config),
        token_(token),
        read_row_(read_row),
        weighted_(weighted),
        total_(static_cast<std::size_t>(config.combine_hidden), 0.0F) {}

  [[nodiscard]] const std::vector<float>& run() {
    if (config_.order == SumOrder::kDomains && config_.domain_size > 0) {
      add_domains();
    } else if (config_.layout == OutputLayout::kTokenMajor) {
      add_token_rows(ranks_in_order(), total_);
    } else if (config_.order == SumOrder::kFlat) {
      for (std::size_t position = 0; position < num_positions(); ++position) add_expert_row(position, total_);
    } else {
      add_partial_sums(ranks_in_order(), total_);
    }
    return total_;
  }

 private:
  [[nodiscard]] std::size_t num_positions() const { return token_.dst_row.size(); }

  /// Where the row of a top-k position is; -1 = nowhere.
  [[nodiscard]] int rank_at(std::size_t position) const {
    return token_.dst_row[position] < 0 ? -1 : token_.ranks[position];
  }

  /// R(t), in the order in which the ranks are added.
  [[nodiscard]] std::vector<int> ranks_in_order() const {
    std::vector<int> ranks;
    for (std::size_t position = 0; position < num_positions(); ++position) {
      const int rank = rank_at(position);
      if (rank < 0) continue;
      const auto found = std::find(ranks.begin(), ranks.end(), rank);
      if (found == ranks.end()) {
        ranks.push_back(rank);
      } else if (config_.order == SumOrder::kDeepEpV2) {
        // Where it was last counts: it moves behind all that came before this place.
        ranks.erase(found);
        ranks.push_back(rank);
      }
    }
    const bool ascending = config_.order == SumOrder::kHierarchical || config_.order == SumOrder::kDomains;
    if (ascending) std::sort(ranks.begin(), ranks.end());
    return ranks;
  }

  void add_rounded(const std::vector<float>& partial, std::vector<float>& sum) const {
    for (std::size_t idx = 0; idx < sum.size(); ++idx) {
      sum[idx] = sum[idx] + round_to(config_.combine_dtype, partial[idx]);
    }
  }

  /// Of every domain that has a rank of the token, the sum over its ranks.
  void add_domains() {
    const std::vector<int> all = ranks_in_order();  // ascending
    for (auto first = all.begin(); first != all.end();) {
      const int domain = *first / config_.domain_size;
      const auto last = std::find_if(first, all.end(), [&](int rank) { return rank / config_.domain_size != domain; });
      const std::vector<int> ranks(first, last);
      first = last;
      std::vector<float> of_domain(total_.size(), 0.0F);
      config_.layout == OutputLayout::kTokenMajor ? add_token_rows(ranks, of_domain)
                                                  : add_partial_sums(ranks, of_domain);
      add_rounded(of_domain, total_);
    }
  }

  void add(float weight, std::vector<float>& sum) const {
    for (std::size_t idx = 0; idx < sum.size(); ++idx) {
      const float term = weighted_ ? weight * row_[idx] : row_[idx];
      sum[idx] = sum[idx] + term;
    }
  }

  void add_expert_row(std::size_t position, std::vector<float>& sum) {
    const int rank = rank_at(position);
    if (rank < 0) return;
    read_row_(rank, token_.dst_row[position], row_);
    add(token_.weights[position], sum);
  }

  void add_partial_sums(const std::vector<int>& ranks, std::vector<float>& sum) {
    for (const int rank : ranks) {
      std::vector<float> partial(total_.size(), 0.0F);
      for (std::size_t position = 0; position < num_positions(); ++position) {
        if (rank_at(position) == rank) add_expert_row(position, partial);
      }
      add_rounded(partial, sum);
    }
  }

  void add_token_rows(const std::vector<int>& ranks, std::vector<float>& sum) {
    for (const int rank : ranks) {
      float weight = 0.0F;
      std::int32_t row = -1;
      for (std::size_t position = 0; position < num_positions(); ++position) {
        if (rank_at(position) != rank) continue;
        weight = weight + token_.weights[position];
        row = token_.dst_row[position];
      }
      read_row_(rank, row, row_);
      add(weight, sum);
    }
  }

  const ResolvedConfig& config_;
  const TokenPlaces& token_;
  const RowReader& read_row_;
  bool weighted_;
  std::vector<float> total_;
  std::vector<float> row_;
};

// Functions of their own: texts in those of elements would cost the address sanitizer a frame for every element.
[[noreturn, gnu::noinline]] void throw_no_elements(DType dtype) {
  throw Error(ErrorCode::kUnsupported, "dtype " + std::string(to_string(dtype)) + " has no elements to read");
}
[[noreturn, gnu::noinline]] void throw_not_summed(DType dtype) {
  throw Error(ErrorCode::kUnsupported, "rows of dtype " + std::string(to_string(dtype)) + " are not summed");
}

}  // namespace

void combine_token(const ResolvedConfig& config, const TokenPlaces& token, const RowReader& read_row, bool weighted,
                   std::byte* out) {
  TokenSum sum(config, token, read_row, weighted);
  const std::vector<float>& total = sum.run();
  for (std::size_t idx = 0; idx < total.size(); ++idx) {
    write_element(config.combine_dtype, out, static_cast<std::int64_t>(idx), total[idx]);
  }
}

float dot_in_lanes(std::span<const float> a, std::span<const float> b) {
  constexpr std::size_t kLanes = 16;
  std::array<float, kLanes> lanes{};
  for (std::size_t idx = 0; idx < a.size(); ++idx) {
    const float product = a[idx] * b[idx];
    lanes[idx % kLanes] = lanes[idx % kLanes] + product;
  }
  for (const std::size_t stride : {8U, 4U, 2U, 1U}) {
    for (std::size_t lane = 0; lane < stride; ++lane) lanes[lane] = lanes[lane] + lanes[lane + stride];
  }
  return numeric::canonical_fp32(lanes[0]);
}

float read_element(DType dtype, const std::byte* row, std::int64_t idx) {
  const std::byte* element = row + idx * dtype_bytes(dtype);
  std::uint16_t half = 0;
  float single = 0.0F;
  switch (dtype) {
    case DType::kBf16:
      std::memcpy(&half, element, sizeof(half));
      return numeric::bf16_to_fp32(half);
    case DType::kFp16:
      std::memcpy(&half, element, sizeof(half));
      return numeric::fp16_to_fp32(half);
    case DType::kFp32:
      std::memcpy(&single, element, sizeof(single));
      return single;
    case DType::kFp8E4m3:
      return numeric::fp8_e4m3_to_fp32(static_cast<std::uint8_t>(*element));
    case DType::kRaw:
      break;
  }
  throw_no_elements(dtype);
}

void write_element(DType dtype, std::byte* row, std::int64_t idx, float value) {
  std::byte* element = row + idx * dtype_bytes(dtype);
  if (dtype == DType::kFp32) {
    const float stored = numeric::canonical_fp32(value);
    std::memcpy(element, &stored, sizeof(stored));
  } else if (dtype == DType::kBf16 || dtype == DType::kFp16) {
    const std::uint16_t stored = dtype == DType::kBf16 ? numeric::fp32_to_bf16(value) : numeric::fp32_to_fp16(value);
    std::memcpy(element, &stored, sizeof(stored));
  } else {
    throw_not_summed(dtype);
  }
}

}  // namespace epistle::reference
