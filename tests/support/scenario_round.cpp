#include "support/scenario_round.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "dispatch/reference/quantise.hpp"

namespace epistle::testing {
namespace {

// Random bf16 have magnitudes from nothing to infinity, so that little is left of a block but its largest. Most pieces
// get magnitudes of 2^-7 to 2^8, some are zeros of either sign, and the others stay.
void tame(std::vector<std::byte>& values) {
  constexpr std::size_t kPieceBytes = 96;  // not those of a scale, so that some of these have two kinds
  for (std::size_t idx = 0; idx + 1 < values.size(); idx += 2) {
    const std::size_t kind = idx / kPieceBytes % 8;
    std::byte& upper = values[idx + 1];
    const std::byte sign = upper & std::byte{0x80};
    if (kind == 0) continue;
    if (kind <= 2) {
      upper = sign;
      values[idx] = std::byte{0};
    } else {
      upper = sign | static_cast<std::byte>(0x3c + (std::to_integer<int>(upper) & 7));
    }
  }
}

}  // namespace

Round::Round(const Scenario& scenario, int round)
    : scenario_(scenario),
      key_(mix(scenario.seed, static_cast<std::uint64_t>(round))),
      config_(resolve_config(scenario.config, scenario.num_ranks(), scenario.domain_size)),
      placement_(config_.placement) {
  const std::size_t num_set = std::min(static_cast<std::size_t>(round), scenario.next_placements.size());
  if (num_set > 0) placement_ = scenario.next_placements[num_set - 1];
  for (int rank = 0; rank < num_ranks(); ++rank) tables_.push_back(make_table(rank));
}

std::vector<RoutingTable> Round::effective_tables() const {
  std::vector<RoutingTable> tables = tables_;
  for (int rank = 0; rank < num_ranks(); ++rank) {
    auto& ids = tables[static_cast<std::size_t>(rank)].expert_ids;
    for (auto entry = static_cast<std::size_t>(counted_tokens(rank) * config_.top_k); entry < ids.size(); ++entry) {
      ids[entry] = kNoExpert;
    }
  }
  return tables;
}

std::vector<std::byte> Round::payload(int rank) const {
  std::vector<std::byte> bytes = random_bytes(1, rank, table(rank).num_tokens * row_bytes());
  if (config_.quantises) tame(bytes);
  return bytes;
}

std::vector<std::vector<std::byte>> Round::payloads() const {
  std::vector<std::vector<std::byte>> all;
  for (int rank = 0; rank < num_ranks(); ++rank) all.push_back(payload(rank));
  return all;
}

std::vector<std::vector<std::byte>> Round::all_scales() const {
  std::vector<std::vector<std::byte>> all;
  for (int rank = 0; rank < num_ranks(); ++rank) all.push_back(scales(rank));
  return all;
}

Round::Received Round::received() const {
  if (!config_.quantises) return {row_bytes(), scale_row_bytes(), payloads(), all_scales()};
  // Four bytes for every 128 elements, or one, filled up to words.
  const std::int64_t num_scales = (config_.hidden + 127) / 128;
  const bool is_fp32 = config_.quantised.scales == ScaleFormat::kFp32;
  Received all{config_.hidden, is_fp32 ? num_scales * 4 : (num_scales + 3) / 4 * 4, {}, {}};
  for (int rank = 0; rank < num_ranks(); ++rank) {
    const std::vector<std::byte> given = payload(rank);
    const std::int64_t num_tokens = table(rank).num_tokens;
    all.rows.emplace_back(static_cast<std::size_t>(num_tokens * all.row_bytes));
    all.scales.emplace_back(static_cast<std::size_t>(num_tokens * all.scale_row_bytes));
    for (std::int64_t token = 0; token < num_tokens; ++token) {
      reference::quantise_row(config_, given.data() + token * row_bytes(),
                              all.rows.back().data() + token * all.row_bytes,
                              all.scales.back().data() + token * all.scale_row_bytes);
    }
  }
  return all;
}

std::vector<std::byte> Round::values(ValueStream stream, int rank, std::int64_t num_rows) const {
  std::vector<std::byte> bytes(static_cast<std::size_t>(num_rows * output_row_bytes()));
  for (std::int64_t row = 0; row < num_rows; ++row) {
    write_row(stream, rank, row, bytes.data() + row * output_row_bytes());
  }
  return bytes;
}

std::vector<float> Round::row_values(ValueStream stream, int rank, std::int64_t row) const {
  std::vector<std::byte> bytes(static_cast<std::size_t>(output_row_bytes()));
  write_row(stream, rank, row, bytes.data());
  std::vector<float> result;
  result.reserve(static_cast<std::size_t>(config_.combine_hidden));
  for (std::int64_t idx = 0; idx < config_.combine_hidden; ++idx) {
    result.push_back(reference::read_element(config_.combine_dtype, bytes.data(), idx));
  }
  return result;
}

RoutingTable Round::make_table(int rank) const {
  RoutingTable table;
  table.num_tokens = scenario_.tokens_per_rank[static_cast<std::size_t>(rank)];
  table.num_experts = config_.num_experts;
  table.top_k = config_.top_k;
  std::vector<std::int32_t> order(static_cast<std::size_t>(config_.num_experts));
  std::uint64_t draw = mix(key_, 1000 + static_cast<std::uint64_t>(rank));
  const auto next = [&draw] { return draw = mix(draw, 7); };
  for (std::int64_t token = 0; token < table.num_tokens; ++token) {
    for (std::size_t idx = 0; idx < order.size(); ++idx) order[idx] = static_cast<std::int32_t>(idx);
    for (std::size_t position = 0; position < static_cast<std::size_t>(config_.top_k); ++position) {
      const std::size_t left = order.size() - position;
      const double share = scenario_.hot_experts ? unit(next()) * unit(next()) * unit(next()) : unit(next());
      std::swap(order[position], order[position + static_cast<std::size_t>(share * static_cast<double>(left))]);
      const bool missing = unit(next()) < scenario_.missing_probability;
      table.expert_ids.push_back(missing ? kNoExpert : order[position]);
      const bool odd = scenario_.odd_values && next() % 16 == 0;
      table.weights.push_back(odd ? odd_value(next()) : static_cast<float>(unit(next())));
    }
  }
  return table;
}

std::vector<std::byte> Round::random_bytes(std::uint64_t stream, int rank, std::int64_t num_bytes) const {
  std::vector<std::byte> bytes(static_cast<std::size_t>(num_bytes));
  const std::uint64_t key = mix(key_, stream * 100 + static_cast<std::uint64_t>(rank));
  for (std::size_t begin = 0; begin < bytes.size(); begin += sizeof(std::uint64_t)) {
    const std::uint64_t bits = mix(key, begin);
    std::memcpy(bytes.data() + begin, &bits, std::min(sizeof(bits), bytes.size() - begin));
  }
  return bytes;
}

void Round::write_row(ValueStream stream, int rank, std::int64_t row, std::byte* target) const {
  const std::uint64_t key =
      mix(mix(key_, stream * 100 + static_cast<std::uint64_t>(rank)), static_cast<std::uint64_t>(row));
  for (std::int64_t idx = 0; idx < config_.combine_hidden; ++idx) {
    const std::uint64_t bits = mix(key, static_cast<std::uint64_t>(idx));
    const bool odd = scenario_.odd_values && bits % 32 == 0;
    const float value = odd ? odd_value(bits >> 8) : static_cast<float>(unit(bits) * 4.0 - 2.0);
    reference::write_element(config_.combine_dtype, target, idx, value);
  }
}

}  // namespace epistle::testing
