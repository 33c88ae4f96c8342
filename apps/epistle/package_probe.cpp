#include "package_probe.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <filesystem>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "bounded_run.hpp"
#include "core/whole_file.hpp"
#include "measure/package_oracle.hpp"
#include "probe_scripts.hpp"
#include "temp_folder.hpp"

namespace epistle::cli {
namespace {

constexpr std::array<std::string_view, 10> kPackageNames = {"deepep",     "deepep-low-latency",
                                                            "deepep-v2",  "hybridep",
                                                            "ncclep",     "ncclep-high-throughput",
                                                            "flashinfer", "mori",
                                                            "nixl",       "uccl"};

struct ProbeLevel {
  std::string_view name;
  std::string_view doing;  ///< "... did not end within 20 s"
};
constexpr std::array kLevels = {ProbeLevel{"imported", "importing it"}, ProbeLevel{"initialised", "making its buffers"},
                                ProbeLevel{"steady", "running iterations"}};

std::string rank_file(const TempFolder& folder, std::string_view name, std::size_t rank, std::string_view ending) {
  return folder.file(fmt::format("{}{}{}", name, rank, ending));
}

/// What one rank told.
struct RankReport {
  std::string begun = {};
  std::vector<std::string> reached = {};
  std::string failed = {};
  std::string untried = {};
  std::string reason = {};
  std::string version = {};
  std::string routing_hash = {};
  Json stack = Json::object();
  Json facts = Json::object();
  std::string end = {};         ///< how its process ended, where that was badly
  bool left_waiting = false;    ///< for another rank, when it was ended
  std::string last_words = {};  ///< that it wrote to standard error
};

void take_line(const Json& line, RankReport& report) {
  if (line.contains("begin")) report.begun = text_at(line, "begin");
  if (line.contains("reached")) report.reached.push_back(text_at(line, "reached"));
  if (line.contains("failed")) report.failed = text_at(line, "failed");
  if (line.contains("untried")) report.untried = text_at(line, "untried");
  if (line.contains("reason")) report.reason = text_at(line, "reason");
  if (line.contains("version")) report.version = text_at(line, "version");
  if (line.contains("routing_hash")) report.routing_hash = text_at(line, "routing_hash");
  for (const auto& [name, target] : {std::pair{"stack", &report.stack}, std::pair{"facts", &report.facts}}) {
    if (line.contains(name) && line.at(name).is_object()) *target = line.at(name);
  }
}

/// A file that a rank may not have written.
std::string read_if_there(const std::string& path) {
  return std::filesystem::exists(path) ? read_whole_file(path) : std::string();
}

RankReport read_report(const TempFolder& folder, std::size_t rank, const Json& ends) {
  RankReport report;
  const std::string text = read_if_there(rank_file(folder, "rank", rank, ".jsonl"));
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const Json line = Json::parse(text.substr(begin, end - begin), nullptr, false);
    if (line.is_object()) take_line(line, report);
    begin = end + 1;
  }
  report.last_words = last_line_of(read_if_there(rank_file(folder, "rank", rank, ".err")));
  if (!ends.is_array() || rank >= ends.size()) return report;
  const Json& end = ends[rank];
  BoundedRun as_run;
  as_run.signal = end.value("signal", 0);
  as_run.exit_code = end.value("exit_code", 0);
  report.left_waiting = end.value("left_waiting", false);
  if (as_run.signal != 0 || as_run.exit_code != 0) report.end = as_run.describe();
  return report;
}

bool has_reached(const RankReport& report, std::string_view level) {
  return std::find(report.reached.begin(), report.reached.end(), level) != report.reached.end();
}

/// "making its buffers was ended by signal 11 (Segmentation fault): last words"
std::string ending_text(const RankReport& report, std::string_view doing, const BoundedRun& run) {
  const std::string how = run.timed_out || report.end.empty() ? run.describe() : report.end;
  const bool spoke = !report.last_words.empty() && !run.timed_out;
  return fmt::format("{} {}{}", doing, how, spoke ? ": " + report.last_words : "");
}

/// The level of all ranks together; the reason where it was not reached by all.
std::optional<bool> judge_level(const ProbeLevel& level, const std::vector<RankReport>& ranks, const BoundedRun& run,
                                std::string& reason) {
  if (std::all_of(ranks.begin(), ranks.end(), [&](const RankReport& one) { return has_reached(one, level.name); })) {
    return true;
  }
  for (const RankReport& one : ranks) {
    if (one.failed != level.name) continue;
    reason = one.reason;
    return false;
  }
  for (const RankReport& one : ranks) {
    if (one.untried != level.name) continue;
    reason = "not tried: " + one.reason;
    return std::nullopt;
  }
  // A crash or a hang: rather that of a rank that did not wait for another one.
  const RankReport* blamed = nullptr;
  for (const RankReport& one : ranks) {
    if (has_reached(one, level.name)) continue;
    if (blamed == nullptr || (blamed->left_waiting && !one.left_waiting)) blamed = &one;
  }
  reason = ending_text(*blamed, level.doing, run);
  return false;
}

std::vector<std::uint16_t> read_elements(const std::string& path) {
  const std::string bytes = read_whole_file(path, std::size_t{1} << 40U);
  std::vector<std::uint16_t> elements(bytes.size() / sizeof(std::uint16_t));
  std::memcpy(elements.data(), bytes.data(), elements.size() * sizeof(std::uint16_t));
  return elements;
}

/// Empty, or what is wrong with the outputs of any rank.
std::string check_outputs(const ProbeJob& job, const TempFolder& folder, const RankReport& first) {
  const PackageRun run = {.tables = job.tables,
                          .seed = job.seed,
                          .hidden = job.hidden,
                          .semantics = {.per_expert = first.facts.value("per_expert", false),
                                        .weighted = first.facts.value("weighted", false)}};
  for (std::size_t rank = 0; rank < job.tables.size(); ++rank) {
    const int own = static_cast<int>(rank);
    std::string wrong = check_package_rows(run, own, read_elements(rank_file(folder, "received", rank, ".bin")));
    if (wrong.empty()) wrong = check_package_sums(run, own, read_elements(rank_file(folder, "sums", rank, ".bin")));
    if (!wrong.empty()) return wrong;
  }
  return {};
}

/// Of every round that of the slowest rank.
std::vector<double> slowest_times(const std::vector<RankReport>& ranks, const char* name) {
  std::vector<double> slowest;
  for (const RankReport& rank : ranks) {
    const Json times = rank.facts.value("times_us", Json::object()).value(name, Json::array());
    slowest.resize(std::max(slowest.size(), times.size()));
    for (std::size_t idx = 0; idx < times.size(); ++idx) {
      if (times[idx].is_number()) slowest[idx] = std::max(slowest[idx], times[idx].get<double>());
    }
  }
  return slowest;
}

void take_facts(const std::vector<RankReport>& ranks, ProbeResult& result) {
  const RankReport& first = ranks.front();
  result.version = first.version;
  result.stack = first.stack;
  result.routing_hash = first.routing_hash;
  for (const Json& kernel : first.facts.value("kernels", Json::array())) {
    if (kernel.is_string()) result.kernels.push_back(kernel.get<std::string>());
  }
  for (const RankReport& rank : ranks) {
    const auto bytes = rank.facts.find("device_bytes");
    if (bytes == rank.facts.end() || !bytes->is_number_integer()) continue;
    result.device_bytes = result.device_bytes.value_or(0) + bytes->get<std::int64_t>();
  }
  result.times = {.period_us = slowest_times(ranks, "period"),
                  .dispatch_us = slowest_times(ranks, "dispatch"),
                  .combine_us = slowest_times(ranks, "combine")};
}

void write_job(const ProbeJob& job, const TempFolder& folder) {
  for (const ProbeScript& script : probe_scripts()) {
    TempFolder::write(folder.file(script.name), script.text.data(), script.text.size());
  }
  Json counts = Json::array();
  for (std::size_t rank = 0; rank < job.tables.size(); ++rank) {
    const RoutingTable& table = job.tables[rank];
    counts.push_back(table.num_tokens);
    const auto rows = package_rows(job.seed, static_cast<int>(rank), table.num_tokens, job.hidden);
    TempFolder::write(rank_file(folder, "rows", rank, ".bin"), rows.data(), rows.size() * sizeof(rows[0]));
    TempFolder::write(rank_file(folder, "ids", rank, ".bin"), table.expert_ids.data(),
                      table.expert_ids.size() * sizeof(table.expert_ids[0]));
    TempFolder::write(rank_file(folder, "weights", rank, ".bin"), table.weights.data(),
                      table.weights.size() * sizeof(table.weights[0]));
  }
  const RoutingTable& first = job.tables.front();
  const std::string text = Json({{"package", job.package},
                                 {"folder", folder.file("")},
                                 {"device", job.on_gpu ? "cuda" : "cpu"},
                                 {"num_ranks", job.tables.size()},
                                 {"hidden", job.hidden},
                                 {"num_experts", first.num_experts},
                                 {"top_k", first.top_k},
                                 {"tokens_per_rank", counts},
                                 {"warmups", job.warmups},
                                 {"rounds", job.rounds},
                                 {"pairs", job.pairs}})
                               .dump();
  TempFolder::write(folder.file("job.json"), text.data(), text.size());
}

/// How the processes of the ranks ended, in the last line.
Json read_ends(const BoundedRun& run) {
  const Json answer = object_in_last_line(run.out);
  return answer.is_object() ? answer.value("ranks", Json()) : Json();
}

}  // namespace

bool is_package(std::string_view name) noexcept {
  return std::find(kPackageNames.begin(), kPackageNames.end(), name) != kPackageNames.end();
}

ProbeResult run_probe(const ProbeJob& job) {
  const TempFolder folder;
  write_job(job, folder);
  const BoundedRun run = run_bounded({job.python, folder.file("main.py"), folder.file("job.json")}, job.limit);
  const Json ends = read_ends(run);
  std::vector<RankReport> ranks;
  for (std::size_t rank = 0; rank < job.tables.size(); ++rank) ranks.push_back(read_report(folder, rank, ends));
  ProbeResult result;
  take_facts(ranks, result);
  if (ends.is_null() && !run.timed_out) {
    result.imported = false;
    const std::string words = last_line_of(run.err);
    result.reason = fmt::format("the interpreter {}{}", run.succeeded() ? "gave no answer" : run.describe(),
                                words.empty() ? "" : ": " + words);
    return result;
  }
  std::optional<bool>* const levels[] = {&result.imported, &result.initialised, &result.steady};
  for (std::size_t idx = 0; idx < kLevels.size(); ++idx) {
    *levels[idx] = judge_level(kLevels[idx], ranks, run, result.reason);
    if (!levels[idx]->value_or(false)) return result;
  }
  if (std::string wrong = check_outputs(job, folder, ranks.front()); !wrong.empty()) {
    result.steady = false;
    result.reason = "its outputs are wrong: " + wrong;
    return result;
  }
  for (const RankReport& rank : ranks) {
    if (!has_reached(rank, "leaving"))
      result.reason = ending_text(rank, "its iterations were right, but leaving it", run);
  }
  return result;
}

}  // namespace epistle::cli
