#include "cost/fit/bench_record.hpp"

#include <cmath>
#include <filesystem>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "epistle/error.hpp"

#include "core/ascii.hpp"
#include "cost/exchange_counts.hpp"
#include "cost/work.hpp"
#include "topology/cluster.hpp"

namespace epistle {
namespace {

using RecordJson = nlohmann::json;

/// "NVIDIA H200" is h200-hgx.
Cluster cluster_of_gpu(const std::string& name) {
  const std::string wanted = to_lower(name);
  for (const Cluster& cluster : cluster_presets()) {
    const std::string model = cluster.name.substr(0, cluster.name.find('-'));
    if (wanted.find(model) != std::string::npos) return cluster;
  }
  return find_cluster("unknown");
}

/// Reads the parts of a record that say what was measured.
class RecordReader {
 public:
  RecordReader(const RecordJson& record, std::string_view file)
      : file_(file), config_(record.at("config")), gpu_(record.at("gpu")), results_(record.at("results")) {
    if (gpu_.is_null()) fail("is of the host device; times of GPUs can be calibrated");
    ranks_ = config_.at("ranks").get<double>();
    if (gpu_.at("used_gpus").get<double>() < ranks_) fail("has ranks that share a GPU; each needs one of its own");
    gpu_name_ = gpu_.at("name").get<std::string>();
    cluster_ = cluster_of_gpu(gpu_name_);
    layout_ = config_.at("layout").get<std::string>();
    num_sms_ = config_.at("sms").is_null() ? gpu_.at("sms").get<double>() : config_.at("sms").get<double>();
  }

  void read(MeasurementTable& table) const {
    for (const RecordJson& result : results_) {
      const std::string dispatcher = result.at("dispatcher").get<std::string>();
      const std::string phase = result.at("phase").get<std::string>();
      if (phase != "dispatch" && phase != "combine") continue;
      const bool low_latency = dispatcher == "low_latency";
      if (!low_latency && dispatcher != "direct") continue;
      Observation observation = observe(phase);
      observation.table = table.name;
      observation.us = result.at("median_us").get<double>();
      if (!(observation.us > 0.0)) fail("has a time that is not positive");
      table.times.push_back({.curve = (low_latency ? "epistle_low_latency " : "direct ") + phase,
                             .observation = std::move(observation),
                             .line = 1});
      ++table.num_rows;
    }
    if (table.times.empty()) fail("has no time of dispatch or combine of direct or low_latency");
  }

 private:
  [[noreturn]] void fail(std::string_view reason) const {
    throw Error(ErrorCode::kCorruptInput, fmt::format("{} {}", file_, reason));
  }

  [[nodiscard]] Observation observe(const std::string& phase) const {
    const double tokens = config_.at("tokens").get<double>();
    const double hidden = config_.at("hidden").get<double>();
    const double top_k = config_.at("top_k").get<double>();
    const double experts = config_.at("num_experts").get<double>();
    const auto wire = config_.find("wire");
    // "fp8" and what says of its scales; "as-given" otherwise.
    const bool becomes_fp8 =
        wire != config_.end() && wire->is_string() && wire->get_ref<const std::string&>().starts_with("fp8");
    const bool fp8 = phase == "dispatch" && (config_.at("dtype") == "fp8" || becomes_fp8);
    const double row_bytes = fp8 ? hidden + 4 * hidden / 128 : 2 * hidden;
    const double distinct = expected_distinct_groups(experts, top_k, ranks_);
    ExchangeWork work = throughput_work(exchange_base(cluster_, ranks_, cluster_.gpus_per_domain()),
                                        {.tokens_per_rank = tokens,
                                         .num_ranks = ranks_,
                                         .top_k = top_k,
                                         .distinct_ranks = distinct,
                                         .row_bytes = row_bytes},
                                        num_sms_);
    // Where every expert has rows of its own, a row is copied for each further one of its rank.
    if (layout_ != "token_major") work.rank_rows = tokens * top_k;
    const auto doublings = [](double value) { return std::log2(std::max(value, 1.0)); };
    return {
        .table = {},
        .label = fmt::format("{} {} {} {} ranks {} tokens {} SMs", gpu_name_, phase, layout_, ranks_, tokens, num_sms_),
        .point = {.path = {cluster_.name, layout_},
                  .position = {doublings(tokens), doublings(ranks_), doublings(num_sms_), doublings(row_bytes),
                               doublings(experts)}},
        .work = work};
  }

  std::string_view file_;
  const RecordJson& config_;
  const RecordJson& gpu_;
  const RecordJson& results_;
  Cluster cluster_;
  std::string gpu_name_;
  std::string layout_;
  double ranks_ = 0;
  double num_sms_ = 0;
};

}  // namespace

MeasurementTable parse_bench_record(std::string_view text, std::string_view file) {
  MeasurementTable table;
  table.name = std::filesystem::path(file).stem().string();
  try {
    const RecordJson record = RecordJson::parse(text.begin(), text.end());
    RecordReader(record, file).read(table);
  } catch (const RecordJson::exception& error) {
    throw Error(ErrorCode::kCorruptInput, fmt::format("{} is not a record of epistle bench: {}", file, error.what()));
  }
  return table;
}

}  // namespace epistle
