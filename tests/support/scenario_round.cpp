#include "support/scenario_round.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace epistle::testing {

Round::Round(const Scenario& scenario, int round)
    : scenario_(scenario),
      key_(mix(scenario.seed, static_cast<std::uint64_t>(round))),
      config_(resolve_config(scenario.config, scenario.num_ranks())) {
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
