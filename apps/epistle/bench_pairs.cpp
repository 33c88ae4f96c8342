#include "bench_pairs.hpp"

#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "report/format.hpp"
#include "report/table.hpp"

namespace epistle::cli {
namespace {

/// "chain of 20 pairs, one graph"
std::string chain_text(const PairTimes& chain, bool on_cuda) {
  std::string text = fmt::format("chain of {} pair{}", chain.num, chain.num == 1 ? "" : "s");
  if (on_cuda) text += chain.in_graph ? ", one graph" : ", no graph";
  return text;
}

Json pairs_json(const std::vector<PairTimes>& all, std::string_view num_name) {
  if (all.empty()) return nullptr;
  Json list = Json::array();
  for (const PairTimes& pairs : all) {
    list.push_back({{"dispatcher", pairs.dispatcher},
                    {num_name, pairs.num},
                    {"in_graph", pairs.in_graph},
                    {"samples", pairs.num_samples},
                    {"median_us", pairs.time_us.median},
                    {"p10_us", pairs.time_us.p10},
                    {"p90_us", pairs.time_us.p90},
                    {"p99_us", pairs.time_us.p99},
                    {"min_us", pairs.time_us.min},
                    {"max_us", pairs.time_us.max}});
  }
  return list;
}

}  // namespace

std::string render_pairs_table(const BenchResult& result) {
  if (result.chains.empty() && result.replays.empty()) return {};
  Table table({{"dispatcher", Align::kLeft},
               {"in a row", Align::kLeft},
               {"median", Align::kRight},
               {"p10", Align::kRight},
               {"p90", Align::kRight},
               {"p99", Align::kRight},
               {"samples", Align::kRight}});
  const auto add_row = [&](const PairTimes& pairs, const std::string& what) {
    const Summary& time_us = pairs.time_us;
    table.add_row({pairs.dispatcher, what, format_us(time_us.median), format_us(time_us.p10), format_us(time_us.p90),
                   format_us(time_us.p99), format_count(pairs.num_samples)});
  };
  for (const PairTimes& chain : result.chains) add_row(chain, chain_text(chain, result.cuda.has_value()));
  for (const PairTimes& replays : result.replays) add_row(replays, "replays of a graph of one pair");
  return table.render() +
         "Times are those of one pair on the slowest rank: a dispatch that reads its routing anew, and a combine.\n\n";
}

Json chains_json(const BenchResult& result) { return pairs_json(result.chains, "pairs"); }
Json replays_json(const BenchResult& result) { return pairs_json(result.replays, "replays"); }

}  // namespace epistle::cli
