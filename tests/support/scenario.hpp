// One dispatch/combine scenario, played by every rank of a group and compared with the oracle, bit for bit. Every rank
// can compute every rank's inputs from the seed, so ranks may be threads or processes.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "epistle/dispatcher.hpp"

#include "dispatch/call/config_check.hpp"
#include "dispatch/reference/oracle.hpp"
#include "measure/verify.hpp"

namespace epistle::testing {

struct Scenario {
  DispatcherConfig config;
  std::vector<std::int64_t> tokens_per_rank;
  std::uint64_t seed = 1;
  double missing_probability = 0.1;  ///< of an entry being kNoExpert
  bool hot_experts = false;          ///< most tokens go to the first experts
  bool odd_values = false;           ///< infinities, NaNs and subnormals among the values and weights
  IdType id_type = IdType::kInt32;
  bool stage_combine = false;  ///< give combine rows from private memory instead of output().combine_rows
  int num_rounds = 2;          ///< prepares with different routing on one dispatcher
};

/// A small counter-based generator (SplitMix64's finaliser): value `idx` of stream `key`.
inline std::uint64_t mix(std::uint64_t key, std::uint64_t idx) {
  std::uint64_t z = key * 0x9e3779b97f4a7c15U + idx * 0xbf58476d1ce4e5b9U + 0x94d049bb133111ebU;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31);
}

inline double unit(std::uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1.0p-53; }

inline float odd_value(std::uint64_t bits) {
  constexpr float kValues[] = {INFINITY, -INFINITY, NAN, 1e-40F, -1e-40F, 3e38F, -0.0F, 6e-8F};
  return kValues[bits % 8];
}

class Play {
 public:
  Play(const Scenario& scenario, int round)
      : scenario_(scenario),
        num_ranks_(static_cast<int>(scenario.tokens_per_rank.size())),
        key_(mix(scenario.seed, static_cast<std::uint64_t>(round))),
        config_(resolve_config(scenario.config, num_ranks_)),
        expectation_(config_, make_tables()) {}

  const DispatcherConfig& config() const { return config_; }
  const Expectation& expectation() const { return expectation_; }
  const RoutingTable& table(int rank) const { return expectation_.table(rank); }
  const reference::RankLayout& layout(int rank) const { return expectation_.layout(rank); }

  /// Random bytes, as any payload is just carried.
  std::vector<std::byte> payload(int rank) const { return random_bytes(1, rank, table(rank).num_tokens * row_bytes()); }
  std::vector<std::byte> scales(int rank) const {
    return random_bytes(2, rank, table(rank).num_tokens * scale_bytes());
  }
  std::int64_t row_bytes() const { return config_.hidden * dtype_bytes(config_.dtype); }
  std::int64_t scale_bytes() const {
    return config_.dtype == DType::kFp8E4m3 ? (config_.hidden + 127) / 128 * 4 : config_.raw_scale_bytes;
  }
  std::int64_t combine_row_bytes() const { return config_.combine_hidden * dtype_bytes(config_.combine_dtype); }

  /// Rows of values to sum: `stream` tells apart expert outputs and gradients.
  std::vector<std::byte> values(std::uint64_t stream, int rank, std::int64_t num_rows) const {
    std::vector<std::byte> bytes(static_cast<std::size_t>(num_rows * combine_row_bytes()));
    for (std::int64_t row = 0; row < num_rows; ++row) write_row(stream, rank, row, &bytes[at(row)]);
    return bytes;
  }
  std::vector<float> row_values(std::uint64_t stream, int rank, std::int64_t row) const {
    std::vector<std::byte> bytes(static_cast<std::size_t>(combine_row_bytes()));
    write_row(stream, rank, row, bytes.data());
    return read_floats(bytes.data());
  }
  std::vector<float> read_floats(const std::byte* row) const {
    std::vector<float> result;
    for (std::int64_t idx = 0; idx < config_.combine_hidden; ++idx) {
      result.push_back(reference::read_element(config_.combine_dtype, row, idx));
    }
    return result;
  }

  /// What combine of the rows of `stream` must give for all tokens of `rank`.
  std::vector<std::byte> combined(std::uint64_t stream, int rank, bool weighted) const {
    std::vector<std::byte> out(static_cast<std::size_t>(table(rank).num_tokens * combine_row_bytes()));
    const reference::RowReader reader = [&](int peer, std::int32_t row, std::vector<float>& values) {
      values = row_values(stream, peer, row);
    };
    expectation_.combine(rank, {0, table(rank).num_tokens}, reader, weighted, out.data());
    return out;
  }

  bool is_local(int rank, std::int32_t expert) const {
    const ExpertPartition partition{config_.num_experts, num_ranks_};
    return expert != kNoExpert && partition.rank_of(expert) == rank;
  }

 private:
  std::size_t at(std::int64_t row) const { return static_cast<std::size_t>(row * combine_row_bytes()); }

  std::vector<RoutingTable> make_tables() const {
    std::vector<RoutingTable> tables;
    for (int rank = 0; rank < num_ranks_; ++rank) tables.push_back(make_table(rank));
    return tables;
  }

  RoutingTable make_table(int rank) const {
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

  std::vector<std::byte> random_bytes(std::uint64_t stream, int rank, std::int64_t num_bytes) const {
    std::vector<std::byte> bytes(static_cast<std::size_t>(num_bytes));
    const std::uint64_t key = mix(key_, stream * 100 + static_cast<std::uint64_t>(rank));
    for (std::size_t idx = 0; idx < bytes.size(); ++idx) bytes[idx] = static_cast<std::byte>(mix(key, idx));
    return bytes;
  }

  void write_row(std::uint64_t stream, int rank, std::int64_t row, std::byte* target) const {
    const std::uint64_t key =
        mix(mix(key_, stream * 100 + static_cast<std::uint64_t>(rank)), static_cast<std::uint64_t>(row));
    for (std::int64_t idx = 0; idx < config_.combine_hidden; ++idx) {
      const std::uint64_t bits = mix(key, static_cast<std::uint64_t>(idx));
      const bool odd = scenario_.odd_values && bits % 32 == 0;
      const float value = odd ? odd_value(bits >> 8) : static_cast<float>(unit(bits) * 4.0 - 2.0);
      reference::write_element(config_.combine_dtype, target, idx, value);
    }
  }

  Scenario scenario_;
  int num_ranks_;
  std::uint64_t key_;
  DispatcherConfig config_;
  Expectation expectation_;
};

template <typename A, typename B>
Mismatch expect_equal(const A& actual, const B& expected, const std::string& what) {
  if (actual == expected) return std::nullopt;
  return fmt::format("{}: got {}, expected {}", what, actual, expected);
}

#define EPISTLE_RETURN_MISMATCH(expression)                \
  do {                                                     \
    if (Mismatch mismatch = (expression)) return mismatch; \
  } while (false)

/// Compares the description of the received rows.
inline Mismatch check_description(const Play& play, int rank, const DispatchOutput& output) {
  return play.expectation().check_description(rank, output);
}

/// Compares received rows with the sources' rows of `row_bytes`; padding must be zero.
inline Mismatch check_rows(const Play& play, int rank, const std::byte* rows, std::int64_t row_bytes,
                           const std::vector<std::vector<std::byte>>& sources, const std::string& what) {
  const auto source_row = [&](int src_rank, std::int64_t src_token, std::byte* row) {
    std::memcpy(row, sources[static_cast<std::size_t>(src_rank)].data() + src_token * row_bytes,
                static_cast<std::size_t>(row_bytes));
  };
  return play.expectation().check_rows(
      rank, {.rows = rows, .row_bytes = row_bytes, .range = play.expectation().all_rows(rank), .what = what},
      source_row);
}

inline void poison(std::byte* bytes, std::int64_t num_bytes) {
  if (num_bytes > 0) std::memset(bytes, 0xa5, static_cast<std::size_t>(num_bytes));
}

/// Both backward passes of a prepared handle.
inline Mismatch check_backward(const Play& play, int rank, Dispatcher& dispatcher, const Handle& handle) {
  const DispatchOutput& output = handle.output();
  const auto& rows = play.layout(rank).rows;
  const auto top_k = static_cast<std::size_t>(play.config().top_k);
  const bool token_major = play.config().layout == OutputLayout::kTokenMajor;
  const std::size_t per_row = token_major ? top_k : 1;
  const std::int64_t row_bytes = play.combine_row_bytes();

  // Gradient of combine: the token's gradient at each of its rows, times the row's weight.
  const std::vector<std::byte> grad_out = play.values(21, rank, play.table(rank).num_tokens);
  const std::vector<std::byte> saved = play.values(22, rank, output.num_rows);
  std::vector<float> grad_weights(rows.size() * per_row + 1, 42.0F);
  const bool weighted = play.config().apply_weights;
  const std::byte* grad_rows = dispatcher.combine_backward(handle, grad_out.data(), weighted ? saved.data() : nullptr,
                                                           weighted ? grad_weights.data() : nullptr);
  for (std::size_t row = 0; row < rows.size(); ++row) {
    std::vector<std::byte> expected(static_cast<std::size_t>(row_bytes));
    float product = 0.0F;
    if (rows[row].src_rank >= 0) {
      const auto gradient = play.row_values(21, rows[row].src_rank, rows[row].src_token);
      float weight = 0.0F;
      for (std::size_t column = 0; column < per_row; ++column) weight += output.weights[row * per_row + column];
      for (std::size_t idx = 0; idx < gradient.size(); ++idx) {
        reference::write_element(play.config().combine_dtype, expected.data(), static_cast<std::int64_t>(idx),
                                 weighted ? weight * gradient[idx] : gradient[idx]);
      }
      product = reference::dot_in_lanes(play.row_values(22, rank, static_cast<std::int64_t>(row)), gradient);
    }
    EPISTLE_RETURN_MISMATCH(compare_bytes(grad_rows + static_cast<std::int64_t>(row) * row_bytes, expected.data(),
                                          expected.size(), fmt::format("combine_backward row {}", row)));
    for (std::size_t column = 0; weighted && column < per_row; ++column) {
      const std::size_t idx = row * per_row + column;
      const bool is_here = token_major ? output.local_expert_ids[idx] >= 0 : true;
      const float wanted = is_here ? product : 0.0F;
      EPISTLE_RETURN_MISMATCH(
          compare_bytes(&grad_weights[idx], &wanted, sizeof(float), fmt::format("grad_weights[{}]", idx)));
    }
  }

  // Gradient of dispatch: an unweighted combine, and each weight's gradient back at its place in the top-k.
  for (std::size_t idx = 0; idx < grad_weights.size(); ++idx)
    grad_weights[idx] = static_cast<float>(idx) + static_cast<float>(rank) * 4096.0F;
  const std::vector<std::byte> row_gradients = play.values(23, rank, output.num_rows);
  std::vector<std::byte> grad_x(static_cast<std::size_t>(play.table(rank).num_tokens * row_bytes));
  std::vector<float> grad_topk(static_cast<std::size_t>(play.table(rank).num_tokens) * top_k + 1, 42.0F);
  poison(grad_x.data(), static_cast<std::int64_t>(grad_x.size()));
  dispatcher.dispatch_backward(handle, row_gradients.data(), grad_weights.data(), grad_x.data(),
                               static_cast<std::int64_t>(grad_x.size()), grad_topk.data());
  EPISTLE_RETURN_MISMATCH(
      compare_bytes(grad_x.data(), play.combined(23, rank, false).data(), grad_x.size(), "dispatch_backward"));
  const ExpertPartition partition{play.config().num_experts,
                                  static_cast<std::int32_t>(dispatcher.layout().params().num_ranks)};
  for (std::size_t entry = 0; entry + 1 < grad_topk.size(); ++entry) {
    const std::int32_t row = play.layout(rank).dst_row[entry];
    float expected = 0.0F;
    if (row >= 0) {
      const int peer = partition.rank_of(play.table(rank).expert_ids[entry]);
      const std::size_t idx = static_cast<std::size_t>(row) * per_row + (token_major ? entry % top_k : 0);
      expected = static_cast<float>(idx) + static_cast<float>(peer) * 4096.0F;
    }
    EPISTLE_RETURN_MISMATCH(expect_equal(grad_topk[entry], expected, fmt::format("grad_topk_weights[{}]", entry)));
  }
  return std::nullopt;
}

/// Makes a dispatcher of some device that takes host pointers.
using DispatcherFactory = std::function<std::unique_ptr<Dispatcher>(std::string_view, Group&, const DispatcherConfig&)>;

/// Plays one rank: prepare, dispatch, combine, a cached repeat with other data, both backward passes.
inline Mismatch play_rank(Group& group, const std::string& dispatcher_name, const Scenario& scenario,
                          const DispatcherFactory& create = make_dispatcher) {
  const int rank = group.rank();
  const auto dispatcher = create(dispatcher_name, group, scenario.config);
  std::vector<Handle> handles;
  for (int round = 0; round < scenario.num_rounds; ++round) {
    const Play play(scenario, round);
    const RoutingTable& table = play.table(rank);
    RoutingView view = table.view();
    const std::vector<std::int64_t> wide_ids(table.expert_ids.begin(), table.expert_ids.end());
    if (scenario.id_type == IdType::kInt64) {
      view.expert_ids = wide_ids.data();
      view.id_type = IdType::kInt64;
    }
    handles.push_back(dispatcher->prepare(view));
    const Handle& handle = handles.back();
    EPISTLE_RETURN_MISMATCH(check_description(play, rank, handle.output()));
    EPISTLE_RETURN_MISMATCH(expect_equal(dispatcher->resident_bytes(), dispatcher->buffer_bytes(), "resident bytes"));

    std::vector<std::vector<std::byte>> payloads;
    std::vector<std::vector<std::byte>> scales;
    for (int peer = 0; peer < group.size(); ++peer) {
      payloads.push_back(play.payload(peer));
      scales.push_back(play.scales(peer));
    }
    const auto self = static_cast<std::size_t>(rank);
    const bool has_scales = play.scale_bytes() > 0;
    for (int repeat = 0; repeat < 2; ++repeat) {
      if (handle.output().rows != nullptr) {
        poison(handle.output().rows, handle.output().num_rows * play.row_bytes());
        // Nobody may still be poisoning when the rows of another rank arrive.
        group.barrier();
      }
      const DispatchOutput& output = dispatcher->dispatch(handle, {.rows = payloads[self].data(),
                                                                   .scales = has_scales ? scales[self].data() : nullptr,
                                                                   .num_tokens = table.num_tokens});
      EPISTLE_RETURN_MISMATCH(check_rows(play, rank, output.rows, play.row_bytes(), payloads, "dispatch"));
      if (has_scales) {
        EPISTLE_RETURN_MISMATCH(check_rows(play, rank, output.scales, play.scale_bytes(), scales, "scales"));
      }
      if (play.config().combine_hidden == 0) continue;
      const std::uint64_t stream = 10 + static_cast<std::uint64_t>(repeat);
      const std::vector<std::byte> rows = play.values(stream, rank, output.num_rows);
      if (!scenario.stage_combine && !rows.empty()) std::memcpy(output.combine_rows, rows.data(), rows.size());
      std::vector<std::byte> out(static_cast<std::size_t>(table.num_tokens * play.combine_row_bytes()));
      poison(out.data(), static_cast<std::int64_t>(out.size()));
      dispatcher->combine(handle, scenario.stage_combine ? rows.data() : output.combine_rows, out.data(),
                          static_cast<std::int64_t>(out.size()));
      const auto expected = play.combined(stream, rank, play.config().apply_weights);
      EPISTLE_RETURN_MISMATCH(compare_bytes(out.data(), expected.data(), out.size(), "combine"));
    }
    if (play.config().combine_hidden > 0) {
      EPISTLE_RETURN_MISMATCH(check_backward(play, rank, *dispatcher, handle));
    }
  }
  // The handle of the first round still works, after others were prepared.
  const Play first(scenario, 0);
  const std::vector<std::byte> rows = first.payload(rank);
  const std::vector<std::byte> scales = first.scales(rank);
  std::vector<std::vector<std::byte>> payloads;
  for (int peer = 0; peer < group.size(); ++peer) payloads.push_back(first.payload(peer));
  const DispatchOutput& output =
      dispatcher->dispatch(handles.front(), {.rows = rows.data(),
                                             .scales = first.scale_bytes() > 0 ? scales.data() : nullptr,
                                             .num_tokens = first.table(rank).num_tokens});
  return check_rows(first, rank, output.rows, first.row_bytes(), payloads, "dispatch with an older handle");
}

}  // namespace epistle::testing
