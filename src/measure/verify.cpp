#include "measure/verify.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include <fmt/format.h>

namespace epistle {
namespace {

template <typename Value>
Mismatch compare(const Value& actual, const Value& expected, std::string_view what, std::size_t idx) {
  if (actual == expected) return std::nullopt;
  return fmt::format("{}[{}] is {}, expected {}", what, idx, actual, expected);
}

Mismatch compare_counts(const std::int32_t* actual, const std::vector<std::int32_t>& expected, std::string_view what) {
  for (std::size_t idx = 0; idx < expected.size(); ++idx) {
    if (Mismatch mismatch = compare(actual[idx], expected[idx], what, idx)) return mismatch;
  }
  return std::nullopt;
}

/// The arrays that a layout has, and no others.
Mismatch check_arrays(bool token_major, const RowDescription& description) {
  const auto check = [](bool present, bool wanted, std::string_view what) -> Mismatch {
    if (present == wanted) return std::nullopt;
    return fmt::format("{} is {}", what, present ? "given, and the layout has none" : "null");
  };
  // An array of no rows may be null.
  const bool has_rows = description.num_rows > 0;
  if (Mismatch mismatch =
          check(has_rows && description.local_experts != nullptr, has_rows && token_major, "local_experts")) {
    return mismatch;
  }
  if (Mismatch mismatch =
          check(has_rows && description.row_expert != nullptr, has_rows && !token_major, "row_expert")) {
    return mismatch;
  }
  return check(description.expert_begin != nullptr, !token_major, "expert_begin");
}

}  // namespace

Mismatch compare_bytes(const void* actual, const void* expected, std::size_t num_bytes, const std::string& what) {
  if (num_bytes == 0 || std::memcmp(actual, expected, num_bytes) == 0) return std::nullopt;
  const auto* a = static_cast<const unsigned char*>(actual);
  const auto* e = static_cast<const unsigned char*>(expected);
  std::size_t first = 0;
  while (a[first] == e[first]) ++first;
  return fmt::format("{}: byte {} of {} is {:02x}, expected {:02x}", what, first, num_bytes, a[first], e[first]);
}

Expectation::Expectation(const ResolvedConfig& config, std::vector<RoutingTable> tables,
                         const reference::RoutingStep& step)
    : config_(config),
      tables_(std::move(tables)),
      is_placed_(config.places_experts()),
      placement_generation_((step.placement != nullptr ? *step.placement : config.placement).generation()),
      layout_(reference::layout_of(config_, tables_, step)) {}

Mismatch Expectation::check_description(int rank, const RowDescription& description) const {
  const reference::RankLayout& expected = layout(rank);
  if (description.num_rows != static_cast<std::int64_t>(expected.rows.size())) {
    return fmt::format("num_rows is {}, expected {}", description.num_rows, expected.rows.size());
  }
  if (static_cast<std::size_t>(description.num_local_experts) != expected.expert_counts.size()) {
    return fmt::format("num_local_experts is {}, expected {}", description.num_local_experts,
                       expected.expert_counts.size());
  }
  const std::int32_t first_expert =
      is_placed_ ? kNoExpert : ExpertPartition{config_.num_experts, num_ranks()}.first_expert(rank);
  if (description.first_expert != first_expert) {
    return fmt::format("first_expert is {}, expected {}", description.first_expert, first_expert);
  }
  if (description.placement_generation != placement_generation_) {
    return fmt::format("placement_generation is {}, expected {}", description.placement_generation,
                       placement_generation_);
  }
  if (Mismatch mismatch = check_arrays(config_.layout == OutputLayout::kTokenMajor, description)) return mismatch;
  for (std::size_t row = 0; row < expected.rows.size(); ++row) {
    if (Mismatch mismatch = check_row_description(rank, description, row)) return mismatch;
  }
  if (Mismatch mismatch = compare_counts(description.expert_counts, expected.expert_counts, "expert_counts"))
    return mismatch;
  if (Mismatch mismatch = compare_counts(description.expert_dropped, expected.expert_dropped, "expert_dropped")) {
    return mismatch;
  }
  return compare_counts(description.expert_begin, expected.expert_begin, "expert_begin");
}

Mismatch Expectation::check_row_description(int rank, const RowDescription& description, std::size_t row) const {
  const reference::OutputRow& origin = layout(rank).rows[row];
  const bool token_major = config_.layout == OutputLayout::kTokenMajor;
  const auto top_k = static_cast<std::size_t>(config_.top_k);
  if (Mismatch mismatch = compare(description.src_rank[row], origin.src_rank, "src_rank", row)) return mismatch;
  if (Mismatch mismatch = compare(description.src_token[row], origin.src_token, "src_token", row)) return mismatch;
  const std::size_t num_weights = token_major ? top_k : 1;
  for (std::size_t column = 0; column < num_weights; ++column) {
    float weight = 0.0F;
    std::int32_t local_expert = kNoExpert;
    if (origin.src_rank >= 0) {
      const RoutingTable& source = table(origin.src_rank);
      const std::size_t entry = static_cast<std::size_t>(origin.src_token) * top_k +
                                (token_major ? column : static_cast<std::size_t>(origin.topk_idx));
      const SlotRef& slot = layout(origin.src_rank).slots[entry];
      if (slot.rank == rank) {
        weight = source.weights[entry];
        local_expert = slot.local_slot;
      }
    }
    const std::size_t idx = row * num_weights + column;
    // As bytes: a NaN weight must come through unchanged.
    if (std::bit_cast<std::uint32_t>(description.weights[idx]) != std::bit_cast<std::uint32_t>(weight)) {
      return compare_bytes(&description.weights[idx], &weight, sizeof(weight), fmt::format("weights[{}]", idx));
    }
    Mismatch mismatch = token_major ? compare(description.local_experts[idx], local_expert, "local_experts", idx)
                                    : compare(description.row_expert[row], local_expert, "row_expert", row);
    if (mismatch) return mismatch;
  }
  return std::nullopt;
}

Mismatch Expectation::check_rows(int rank, const RowsToCheck& received, const SourceRow& source_row) const {
  const auto& expected = layout(rank).rows;
  std::vector<std::byte> row(static_cast<std::size_t>(received.row_bytes));
  for (std::int64_t idx = received.range.begin; idx < received.range.end; ++idx) {
    const reference::OutputRow& origin = expected[static_cast<std::size_t>(idx)];
    if (origin.src_rank >= 0) {
      source_row(origin.src_rank, origin.src_token, row.data());
    } else if (!config_.zero_padding) {
      continue;
    } else {
      std::fill(row.begin(), row.end(), std::byte{0});
    }
    const std::byte* const actual = received.rows + idx * received.row_bytes;
    if (std::memcmp(actual, row.data(), row.size()) == 0) continue;
    return compare_bytes(actual, row.data(), row.size(), fmt::format("{} row {}", received.what, idx));
  }
  return std::nullopt;
}

void Expectation::combine(int rank, RowRange range, const reference::RowReader& read_row, bool weighted,
                          std::byte* out) const {
  const RoutingTable& own = table(rank);
  const auto top_k = static_cast<std::size_t>(config_.top_k);
  const std::int64_t row_bytes = config_.combine_hidden * dtype_bytes(config_.combine_dtype);
  std::vector<std::int32_t> ranks(top_k);
  for (std::int64_t token = range.begin; token < range.end; ++token, out += row_bytes) {
    const std::size_t first = static_cast<std::size_t>(token) * top_k;
    for (std::size_t position = 0; position < top_k; ++position) {
      ranks[position] = layout(rank).slots[first + position].rank;
    }
    reference::combine_token(
        config_,
        {.ranks = ranks, .weights = {&own.weights[first], top_k}, .dst_row = {&layout(rank).dst_row[first], top_k}},
        read_row, weighted, out);
  }
}

}  // namespace epistle
