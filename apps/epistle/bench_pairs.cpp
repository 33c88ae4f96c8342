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

/// One row for each dispatcher and way to launch.
class PairsTable {
 public:
  explicit PairsTable(const std::string& what)
      : table_({{"dispatcher", Align::kLeft},
                {what, Align::kLeft},
                {"median", Align::kRight},
                {"p10", Align::kRight},
                {"p90", Align::kRight},
                {"p99", Align::kRight},
                {"samples", Align::kRight}}) {}

  void add(const PairTimes& pairs, const std::string& what) {
    const Summary& time_us = pairs.time_us;
    table_.add_row({pairs.dispatcher, what, format_us(time_us.median), format_us(time_us.p10), format_us(time_us.p90),
                    format_us(time_us.p99), format_count(pairs.num_samples)});
    has_rows_ = true;
  }
  /// Nothing where nothing was added.
  [[nodiscard]] std::string render(std::string_view note) const {
    return has_rows_ ? fmt::format("{}{}\n\n", table_.render(), note) : std::string();
  }

 private:
  Table table_;
  bool has_rows_ = false;
};

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
  std::string text;
  PairsTable pairs("in a row");
  for (const PairTimes& chain : result.chains) pairs.add(chain, chain_text(chain, result.cuda.has_value()));
  for (const PairTimes& replays : result.replays) pairs.add(replays, "replays of a graph of one pair");
  text += pairs.render(
      "Times are those of one pair on the slowest rank: a dispatch that reads its routing anew, and a combine.");
  PairsTable calls("by the host's clock");
  for (const PairTimes& dispatches : result.host_calls) calls.add(dispatches, "dispatch+layout");
  return text + calls.render("On the slowest rank: from the call until its host knows that the rows are there.");
}

Json chains_json(const BenchResult& result) { return pairs_json(result.chains, "pairs"); }
Json replays_json(const BenchResult& result) { return pairs_json(result.replays, "replays"); }
Json host_calls_json(const BenchResult& result) { return pairs_json(result.host_calls, "dispatches"); }

}  // namespace epistle::cli
