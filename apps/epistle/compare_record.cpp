#include "compare_record.hpp"

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <map>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "epistle/error.hpp"

#include "core/reject.hpp"
#include "output.hpp"
#include "page_parts.hpp"
#include "record_parts.hpp"

namespace epistle::cli {
namespace {

constexpr std::string_view kTool = "epistle compare";
constexpr double kMaxTimeUs = 1e12;
constexpr std::size_t kMaxNamed = 6;  // differences in a message

Json unavailable_json(const Unavailable& unavailable) {
  return {{"dispatcher", unavailable.name}, {"status", "unavailable"}, {"reason", unavailable.reason}};
}

Json measured_json(const BenchResult& result, const DispatcherSummary& summary, const PairTimes& chain) {
  std::int64_t wire_bytes = 0;
  for (const PhaseResult& phase : result.phases) {
    if (phase.dispatcher == summary.dispatcher && phase.phase == BenchPhase::kRoundTrip) wire_bytes = phase.wire_bytes;
  }
  Json entry = {{"dispatcher", summary.dispatcher},
                {"status", "measured"},
                {"period_us", percentiles_json(chain.samples_us)},
                {"in_graph", chain.in_graph},
                {"memory",
                 {{"bytes", summary.device_bytes},
                  {"method", result.cuda ? "free memory of all GPUs, before and after it goes"
                                         : "shared memory of all ranks, as the kernel counts it"},
                  {"max_buffer_bytes", summary.max_buffer_bytes},
                  {"as_predicted", summary.buffers_as_predicted}}},
                {"wire_bytes_per_pair", wire_bytes}};
  if (result.cuda) entry["tuning"] = summary.tuning;
  return entry;
}

/// The dispatchers and results of a document.
struct Parts {
  std::vector<Compared> compared;
  std::string baseline;
  bool significance = true;
};

const Compared& find_baseline(const Parts& parts) {
  const Compared* first = nullptr;
  for (const Compared& one : parts.compared) {
    if (!one.reason.empty()) {
      if (one.name == parts.baseline) reject(fmt::format("--baseline {}: it is unavailable: {}", one.name, one.reason));
      continue;
    }
    if (parts.baseline.empty() || one.name == parts.baseline) return one;
    if (first == nullptr) first = &one;
  }
  if (first == nullptr) throw Error(ErrorCode::kCorruptInput, "the records have no measured dispatcher");
  std::string names;
  for (const Compared& one : parts.compared) names += fmt::format("{}{}", names.empty() ? "" : ", ", one.name);
  reject(fmt::format("--baseline is '{}'; there are {}", parts.baseline, names));
}

/// In stored records a dispatcher is compared with itself in the first one, where it is there.
const Compared* counterpart(const Parts& parts, const Compared& one, const Compared& baseline) {
  if (!parts.baseline.empty() || one.record == 0) return &baseline;
  for (const Compared& other : parts.compared) {
    if (other.record == 0 && other.reason.empty() && other.dispatcher == one.dispatcher) return &other;
  }
  return &baseline;
}

Json comparisons_json(const Parts& parts) {
  Json list = Json::array();
  if (!parts.significance) return list;
  const Compared& baseline = find_baseline(parts);
  for (const Compared& one : parts.compared) {
    if (!one.reason.empty()) continue;
    const Compared& other = *counterpart(parts, one, baseline);
    if (&other == &one) continue;
    const bool paired = other.record == one.record && !one.in_blocks && !other.in_blocks;
    const auto difference = paired ? paired_difference(other.period_us, one.period_us)
                                   : unpaired_difference(other.period_us, one.period_us);
    list.push_back({{"dispatcher", one.name},
                    {"against", other.name},
                    {"ratio", one.summary_us.median / other.summary_us.median},
                    {"paired", paired},
                    {"confidence", kConfidence},
                    {"difference_us", difference ? Json(difference->estimate) : Json(nullptr)},
                    {"low_us", difference ? Json(difference->low) : Json(nullptr)},
                    {"high_us", difference ? Json(difference->high) : Json(nullptr)},
                    {"verdict", verdict(difference)}});
  }
  return list;
}

void flatten(const std::string& path, const Json& value, std::map<std::string, std::string>& found) {
  if (!value.is_object()) {
    found[path] = plain_text(value);
    return;
  }
  for (const auto& [name, inner] : value.items()) {
    flatten(path.empty() ? name : fmt::format("{}.{}", path, name), inner, found);
  }
}

/// A stored document that was looked through.
struct Stored {
  std::string label;
  Json document;
  std::vector<Compared> compared;
};

/// File names without folders and endings where these tell the files apart, and as they were given elsewhere.
std::vector<std::string> labels_of(const std::vector<std::string>& files) {
  std::vector<std::string> labels;
  for (const std::string& file : files) {
    if (std::count(files.begin(), files.end(), file) > 1) reject(fmt::format("{} is given twice; give it once", file));
    labels.push_back(std::filesystem::path(file).stem().string());
  }
  const std::vector<std::string> stems = labels;
  for (std::size_t idx = 0; idx < files.size(); ++idx) {
    if (std::count(stems.begin(), stems.end(), stems[idx]) > 1) labels[idx] = files[idx];
  }
  return labels;
}

/// The results of a document, each with the fields that reports show.
void check_results(const JsonField& document) {
  for (const JsonField& result : document.at("results").items()) {
    static_cast<void>(result.at("dispatcher").text());
    static_cast<void>(result.at("phase").text());
    for (const char* const field : {"median_us", "p90_us", "p99_us"}) {
      static_cast<void>(result.at(field).number({0.0, kMaxTimeUs}));
    }
  }
  const JsonField experts = document.at("load").at("experts");
  for (const char* const field : {"min", "max"}) static_cast<void>(experts.at(field).integer({0, INT64_MAX}));
  const auto labels = experts.at("assignments").items();
  for (const JsonField& label : labels) static_cast<void>(label.text());
  const auto counts = experts.at("num_experts").items();
  for (const JsonField& count : counts) static_cast<void>(count.integer({0, INT64_MAX}));
  if (labels.size() != counts.size()) {
    experts.fail(fmt::format("has {} counts for {} ranges", counts.size(), labels.size()));
  }
}

Stored read_stored(const std::string& file, std::string label) {
  Stored stored{.label = std::move(label), .document = read_json_file(file), .compared = {}};
  const JsonField document(stored.document, file);
  const std::string tool = document.at("tool").text();
  if (tool != kTool) {
    document.at("tool").fail(
        fmt::format("is '{}', not '{}': it is a record of another command", shortened(tool), kTool));
  }
  if (document.find("records")) document.at("records").fail("is there: this was made from records; give these");
  if (!document.at("stack").value().is_object()) document.at("stack").fail("is no object");
  if (!document.at("verified").boolean() && document.at("verification").text() != "off") {
    document.at("verified").fail("is false: its outputs were wrong, so that its times mean nothing");
  }
  check_results(document);
  stored.compared = read_compared(document);
  return stored;
}

/// What packages of one name ran on: versions of others count where both records have them.
void add_package_stacks(const Json& document, const Json& other, Json& stack) {
  for (const Json& entry : document.at("dispatchers")) {
    if (!entry.contains("package")) continue;
    for (const Json& counterpart : other.at("dispatchers")) {
      if (counterpart.at("dispatcher") != entry.at("dispatcher") || !counterpart.contains("package")) continue;
      Json& part = stack["packages"][entry.at("dispatcher").get<std::string>()];
      part = entry.at("package").value("stack", Json());
      part["version"] = entry.at("package").value("version", Json());
    }
  }
}

std::vector<std::string> document_differences(const Json& a, const Json& b, const std::string& name_a,
                                              const std::string& name_b) {
  Json stack_a = a.at("stack");
  Json stack_b = b.at("stack");
  add_package_stacks(a, b, stack_a);
  add_package_stacks(b, a, stack_b);
  return stack_differences(stack_a, stack_b, name_a, name_b);
}

void check_stacks(const std::vector<Stored>& all, const StoredOptions& options) {
  for (std::size_t idx = 1; idx < all.size(); ++idx) {
    const auto differences =
        document_differences(all[0].document, all[idx].document, options.files[0], options.files[idx]);
    if (differences.empty()) continue;
    std::string text;
    for (std::size_t at = 0; at < std::min(differences.size(), kMaxNamed); ++at) text += differences[at] + "; ";
    if (differences.size() > kMaxNamed) text += fmt::format("and {} more; ", differences.size() - kMaxNamed);
    throw Error(ErrorCode::kShapeMismatch,
                fmt::format("the records were not measured on one stack: {}measure again on one, or see them side by "
                            "side with --allow-different-stacks",
                            text));
  }
}

}  // namespace

Json percentiles_json(const std::vector<double>& samples_us) {
  const Summary time_us = summarize(samples_us);
  return {{"p50", time_us.median}, {"p90", time_us.p90}, {"p95", time_us.p95},   {"p99", time_us.p99},
          {"min", time_us.min},    {"max", time_us.max}, {"samples", samples_us}};
}

std::vector<std::string> stack_differences(const Json& a, const Json& b, const std::string& name_a,
                                           const std::string& name_b) {
  std::map<std::string, std::string> in_a;
  std::map<std::string, std::string> in_b;
  flatten("", a, in_a);
  flatten("", b, in_b);
  for (const auto& [path, value] : in_a) in_b.try_emplace(path, "not there");
  for (const auto& [path, value] : in_b) in_a.try_emplace(path, "not there");
  std::vector<std::string> differences;
  for (const auto& [path, value] : in_a) {
    if (in_b.at(path) == value) continue;
    differences.push_back(fmt::format("{} is {} in {} and {} in {}", shortened(path), shortened(value), name_a,
                                      shortened(in_b.at(path)), name_b));
  }
  return differences;
}

std::vector<Compared> read_compared(const JsonField& document) {
  std::vector<Compared> all;
  for (const JsonField& entry : document.at("dispatchers").items()) {
    Compared one{.name = entry.at("dispatcher").text(), .reason = {}};
    one.dispatcher = one.name;
    const std::string status = entry.at("status").text();
    if (status == "unavailable") {
      one.reason = entry.at("reason").text();
      if (one.reason.empty()) entry.at("reason").fail("is empty");
    } else if (status == "measured") {
      const JsonField samples = entry.at("period_us").at("samples");
      for (const JsonField& sample : samples.items()) one.period_us.push_back(sample.number({1e-6, kMaxTimeUs}));
      if (one.period_us.empty()) samples.fail("is empty");
      one.summary_us = summarize(one.period_us);
      const JsonField memory = entry.at("memory");
      one.in_blocks = entry.find("package").has_value();
      // What a package takes is known of GPUs only, and what its buffers take by itself alone.
      if (!one.in_blocks || memory.find("bytes")) {
        static_cast<void>(memory.at("bytes").integer({INT64_MIN, INT64_MAX}));
      }
      if (!one.in_blocks) static_cast<void>(memory.at("max_buffer_bytes").integer({0, INT64_MAX}));
    } else {
      entry.at("status").fail(fmt::format("is '{}', not 'measured' or 'unavailable'", shortened(status)));
    }
    const bool repeated =
        std::any_of(all.begin(), all.end(), [&](const Compared& other) { return other.name == one.name; });
    if (repeated) entry.at("dispatcher").fail(fmt::format("repeats '{}'", shortened(one.name)));
    all.push_back(std::move(one));
  }
  return all;
}

Json compare_json(const BenchPlan& plan, const BenchResult& result, const std::string& baseline) {
  Json entries = Json::array();
  for (std::size_t idx = 0; idx < result.dispatchers.size(); ++idx) {
    entries.push_back(measured_json(result, result.dispatchers[idx], result.chains[idx]));
  }
  for (const auto* const list : {&plan.unavailable, &result.unavailable}) {
    for (const Unavailable& unavailable : *list) entries.push_back(unavailable_json(unavailable));
  }
  const Json stack = stack_json(plan, result);
  Json document = provenance_json(kTool, make_fingerprint());
  document.update(Json{{"verified", result.verified},
                       {"verification", verification_name(plan, result)},
                       {"mismatch", result.mismatch.empty() ? Json(nullptr) : Json(result.mismatch)},
                       {"verified_bytes", result.verified_bytes},
                       {"routing_hash", stack.at("routing").at("hash")},
                       {"rounds", plan.spec.num_iterations},
                       {"warmups", plan.spec.num_warmups},
                       {"pairs_per_round", plan.spec.num_chained_pairs},
                       {"stack", stack},
                       {"limit_bytes_per_s", result.cuda ? result.cuda->limit.bytes_per_s() : result.limit.bytes_per_s},
                       {"limit", limit_json(result)},
                       {"load", load_json(plan, result)},
                       {"dispatchers", entries},
                       {"results", phases_json(result)}});
  compare_again(document, baseline);
  return document;
}

void compare_again(Json& document, const std::string& baseline) {
  Parts parts{.compared = read_compared(JsonField(document, "this run")), .baseline = baseline};
  parts.significance = document.at("verification") != "failed";
  document["comparisons"] = comparisons_json(parts);
}

Json combine_records(const StoredOptions& options) {
  const std::vector<std::string> labels = labels_of(options.files);
  std::vector<Stored> all;
  for (std::size_t idx = 0; idx < options.files.size(); ++idx) {
    all.push_back(read_stored(options.files[idx], labels[idx]));
  }
  if (!options.allow_different_stacks) check_stacks(all, options);
  Json records = Json::array();
  Json entries = Json::array();
  Json results = Json::array();
  Json differences = Json::array();
  Parts parts{.compared = {}, .baseline = options.baseline};
  for (std::size_t idx = 0; idx < all.size(); ++idx) {
    const Stored& stored = all[idx];
    const auto named = [&](const Json& name) { return fmt::format("{}: {}", stored.label, plain_text(name)); };
    records.push_back({{"file", options.files[idx]}});
    for (const char* const field : {"command", "commit", "date"}) {
      if (stored.document.contains(field)) records.back()[field] = stored.document.at(field);
    }
    for (const auto& [list, target] : {std::pair{"dispatchers", &entries}, std::pair{"results", &results}}) {
      for (Json item : stored.document.at(list)) {
        item["dispatcher"] = named(item.at("dispatcher"));
        target->push_back(std::move(item));
      }
    }
    for (Compared one : stored.compared) {
      one.name = named(one.name);
      one.record = idx;
      parts.compared.push_back(std::move(one));
    }
    for (const std::string& difference :
         document_differences(all[0].document, stored.document, labels[0], labels[idx])) {
      differences.push_back(difference);
    }
  }
  parts.significance = differences.empty();
  return {{"tool", kTool},
          {"command", command_line()},
          {"records", records},
          {"stack_differences", differences},
          {"stack", all[0].document.at("stack")},
          {"load", all[0].document.at("load")},
          {"dispatchers", entries},
          {"results", results},
          {"comparisons", comparisons_json(parts)}};
}

}  // namespace epistle::cli
