#include "cost/fit/bench_record.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/ascii.hpp"
#include "core/json_field.hpp"
#include "cost/exchange_counts.hpp"
#include "cost/fit/families.hpp"
#include "cost/work.hpp"
#include "topology/cluster.hpp"

namespace epistle {
namespace {

/// "NVIDIA H200" is h200-hgx.
Cluster cluster_of_gpu(const std::string& name) {
  const std::string wanted = to_lower(name);
  for (const Cluster& cluster : cluster_presets()) {
    const std::string model = cluster.name.substr(0, cluster.name.find('-'));
    if (wanted.find(model) != std::string::npos) return cluster;
  }
  return find_cluster("unknown");
}

/// What a record says of how all of its times came about.
struct RecordShape {
  double ranks = 1;
  double ranks_per_domain = 0;  ///< 0 = what the cluster says
  double tokens = 0;
  double hidden = 0;
  double top_k = 1;
  double experts = 1;
  double num_sms = 1;  ///< on the host workers of a rank
  std::string dtype;
  std::string wire;
  std::string layout;
  std::string sizing;
  std::string mover;
  std::string gpu;  ///< empty on the host
  double used_gpus = 0;
};

// What no run exceeds.
constexpr JsonRange<double> kRecordCounts{1, 1 << 28};
constexpr JsonRange<double> kRecordCountsOrNone{0, 1 << 28};
constexpr JsonRange<double> kRecordTimes{0, 1e12};

/// Empty where there is none.
std::string text_of(const JsonField& object, std::string_view name) {
  const auto found = object.find(name);
  return found ? found->text() : std::string();
}

double count_of(const JsonField& object, std::string_view name) { return object.at(name).number(kRecordCounts); }

double count_of(const JsonField& object, std::string_view name, double otherwise) {
  const auto found = object.find(name);
  return found ? found->number(kRecordCountsOrNone) : otherwise;
}

/// What epistle bench and epistle compare write alike.
RecordShape common_shape(const JsonField& shape) {
  return {.ranks = count_of(shape, "ranks"),
          .ranks_per_domain = count_of(shape, "domain_size", 0),
          .tokens = 0,
          .hidden = count_of(shape, "hidden"),
          .top_k = count_of(shape, "top_k"),
          .experts = count_of(shape, "num_experts"),
          .num_sms = 1,
          .dtype = text_of(shape, "dtype"),
          .wire = text_of(shape, "wire"),
          .layout = shape.at("layout").text(),
          .sizing = text_of(shape, "sizing"),
          .mover = {},
          .gpu = {},
          .used_gpus = 0};
}

RecordShape shape_of_bench(const JsonField& record) {
  const JsonField config = record.at("config");
  RecordShape shape = common_shape(config);
  shape.tokens = config.at("tokens").number(kRecordCountsOrNone);
  shape.mover = text_of(config, "mover");
  shape.num_sms = count_of(config, "workers", 1);
  // Null on the host.
  if (!record.value().contains("gpu")) record.fail("has no field 'gpu'");
  const auto gpu = record.find("gpu");
  if (!gpu) return shape;
  shape.gpu = gpu->at("name").text();
  shape.used_gpus = count_of(*gpu, "used_gpus");
  shape.num_sms = count_of(config, "sms", count_of(*gpu, "sms"));
  return shape;
}

RecordShape shape_of_compare(const JsonField& record) {
  const JsonField stack = record.at("stack");
  const JsonField method = stack.at("method");
  const JsonField devices = stack.at("devices");
  RecordShape shape = common_shape(stack.at("shape"));
  for (const JsonField& tokens : stack.at("shape").at("tokens_per_rank").items()) {
    shape.tokens += tokens.number(kRecordCountsOrNone) / shape.ranks;
  }
  shape.mover = text_of(method, "mover");
  shape.num_sms = count_of(method, "workers", 1);
  if (!devices.value().contains("gpu")) return shape;
  shape.gpu = devices.at("gpu").text();
  shape.used_gpus = count_of(devices, "used_gpus");
  shape.num_sms = count_of(method, "sms", count_of(devices, "sms"));
  return shape;
}

/// Which curve a dispatcher's times belong to.
struct RecordCurve {
  std::string_view dispatcher;
  std::string_view curve;
  bool is_own = true;
  bool per_expert = false;  ///< a row for every (token, expert), from all SMs
  double num_sms = 0;       ///< where its default is not all
};

constexpr double kDeepEpSms = 20;  // Buffer.num_sms where nobody sets it
constexpr RecordCurve kRecordCurves[] = {
    {"direct", "direct"},
    {"low_latency", "epistle_low_latency"},
    {"hybrid", "epistle_hybrid"},
    {"deepep", "throughput", false, false, kDeepEpSms},
    {"deepep-low-latency", "low_latency", false, true},
    {"hybridep", "hybrid", false},
};

const RecordCurve* find_record_curve(const std::string& dispatcher) {
  for (const RecordCurve& curve : kRecordCurves) {
    if (curve.dispatcher == dispatcher) return &curve;
  }
  return nullptr;
}

/// Reads the times of a record whose shape is known.
class RecordReader {
 public:
  RecordReader(const JsonField& results, RecordShape shape, std::string_view file)
      : file_(file), results_(results.items()), shape_(std::move(shape)) {
    if (!shape_.gpu.empty() && shape_.used_gpus < shape_.ranks) {
      leave_out("has ranks that share a GPU; each needs one of its own");
    }
    cluster_ = shape_.gpu.empty() ? find_cluster("host") : cluster_of_gpu(shape_.gpu);
  }

  void read(MeasurementTable& table) const {
    for (const JsonField& result : results_) {
      const std::string phase = result.at("phase").text();
      if (phase != "dispatch" && phase != "combine") continue;
      const std::string dispatcher = result.at("dispatcher").text();
      const RecordCurve* const curve = find_record_curve(dispatcher);
      if (curve == nullptr) continue;
      Observation observation = observe(*curve, phase);
      observation.table = table.name;
      observation.us = phase == "dispatch" ? dispatch_us(dispatcher) : time_of(dispatcher, phase);
      if (!(observation.us > 0.0)) {
        throw Error(ErrorCode::kCorruptInput, fmt::format("{} has a time that is not positive", file_));
      }
      table.times.push_back({.curve = fmt::format("{}{} {}", curve->curve, layout_of(dispatcher), phase),
                             .observation = std::move(observation),
                             .line = 1});
      ++table.num_rows;
    }
    if (table.times.empty()) leave_out("has no dispatch or combine of a dispatcher that has a curve");
  }

 private:
  [[noreturn]] void leave_out(std::string_view reason) const {
    throw Error(ErrorCode::kUnsupported, fmt::format("{} {}", file_, reason));
  }

  /// Layouts of rows, and movers, that are different work to a dispatcher have curves of their own.
  [[nodiscard]] std::string_view layout_of(const std::string& dispatcher) const {
    if (dispatcher != "direct") return "";
    if (shape_.mover == "copy-engines") return "_copies";
    if (shape_.layout == "token_major") return "";
    return shape_.layout == "expert_blocks" ? "_blocks" : "_experts";
  }

  /// 0 where there is none.
  [[nodiscard]] double time_of(const std::string& dispatcher, std::string_view phase) const {
    for (const JsonField& result : results_) {
      if (result.at("dispatcher").text() == dispatcher && result.at("phase").text() == phase) {
        return result.at("median_us").number(kRecordTimes);
      }
    }
    return 0.0;
  }

  /// Of a routing that is new, as that of every layer is: with the exchange of counts.
  [[nodiscard]] double dispatch_us(const std::string& dispatcher) const {
    const double both_us = time_of(dispatcher, "dispatch+layout");
    return both_us > 0 ? both_us : time_of(dispatcher, "layout") + time_of(dispatcher, "dispatch");
  }

  [[nodiscard]] Observation observe(const RecordCurve& curve, const std::string& phase) const {
    // "fp8" and what says of its scales; "as-given" otherwise.
    const bool fp8 = phase == "dispatch" && (shape_.dtype == "fp8" || shape_.wire.starts_with("fp8"));
    const double row_bytes = fp8 ? shape_.hidden + 4 * shape_.hidden / 128 : 2 * shape_.hidden;
    const double sms = curve.num_sms > 0 ? curve.num_sms : shape_.num_sms;
    const double domain = shape_.ranks_per_domain > 0 ? shape_.ranks_per_domain : cluster_.gpus_per_domain();
    const ExchangeWork base = exchange_base(cluster_, shape_.ranks, domain);
    const ExchangeShape exchange{
        .tokens_per_rank = shape_.tokens,
        .num_ranks = shape_.ranks,
        .top_k = shape_.top_k,
        .distinct_ranks = expected_distinct_groups(shape_.experts, shape_.top_k, shape_.ranks),
        .distinct_domains = expected_distinct_groups(shape_.experts, shape_.top_k, base.num_domains),
        .row_bytes = row_bytes};
    ExchangeWork work = curve.per_expert ? low_latency_work(base, exchange) : throughput_work(base, exchange, sms);
    // Where every expert has rows of its own, a row is copied for each further one of its rank.
    if (curve.is_own && shape_.layout != "token_major") work.rank_rows = shape_.tokens * shape_.top_k;
    // Of a graph's static shapes nothing waits on the host; with exact sizing a dispatch does, behind its counts.
    work.host_waits = curve.is_own && !shape_.gpu.empty() && shape_.sizing == "exact" && phase == "dispatch";
    std::vector<std::string> path = {cluster_.name};
    if (curve.is_own) {
      path.push_back(shape_.layout);
      path.push_back(shape_.sizing);
    }
    const auto doublings = [](double value) { return std::log2(std::max(value, 1.0)); };
    return {.table = {},
            .label = fmt::format("{} {} {} {} ranks {} tokens {} SMs", shape_.gpu.empty() ? "host" : shape_.gpu, phase,
                                 shape_.layout, shape_.ranks, shape_.tokens, sms),
            .point = {.path = std::move(path),
                      .position = {doublings(shape_.tokens), doublings(shape_.ranks),
                                   curve.per_expert ? 0.0 : doublings(sms), doublings(row_bytes),
                                   doublings(shape_.experts), crossing_position(work)}},
            .work = work};
  }

  std::string_view file_;
  std::vector<JsonField> results_;
  RecordShape shape_;
  Cluster cluster_;
};

}  // namespace

MeasurementTable parse_bench_record(std::string_view text, std::string_view file) {
  MeasurementTable table;
  table.name = std::filesystem::path(file).stem().string();
  const std::string path(file);
  const nlohmann::ordered_json document = parse_json(text, path);
  const JsonField record(document, path);
  const std::string tool = document.is_object() ? text_of(record, "tool") : std::string();
  if (tool.empty() && !(document.is_object() && document.contains("results"))) {
    throw Error(ErrorCode::kUnsupported, fmt::format("{} is not a record of epistle bench", file));
  }
  const bool compared = tool == "epistle compare";
  if (!compared && !tool.empty() && tool != "epistle bench") {
    throw Error(ErrorCode::kUnsupported,
                fmt::format("{} is of {}; times come from epistle bench and epistle compare", file, tool));
  }
  RecordReader(record.at("results"), compared ? shape_of_compare(record) : shape_of_bench(record), file).read(table);
  return table;
}

}  // namespace epistle
