#include "cost/fit/measurement_table.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <map>
#include <optional>
#include <stdexcept>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "epistle/error.hpp"

#include "core/ascii.hpp"
#include "core/whole_file.hpp"
#include "cost/exchange_counts.hpp"
#include "cost/fit/bench_record.hpp"
#include "cost/fit/families.hpp"
#include "cost/power_law.hpp"
#include "cost/work.hpp"
#include "topology/cluster.hpp"

namespace epistle {
namespace {

constexpr double kMaxNumber = 1e12;  // larger numbers are slips

std::vector<std::string> split_line(std::string_view line) {
  std::vector<std::string> cells(1);
  bool quoted = false;
  for (const char character : line) {
    if (character == '"') {
      quoted = !quoted;
    } else if (character == ',' && !quoted) {
      cells.emplace_back();
    } else if (character != '\r') {
      cells.back() += character;
    }
  }
  // Blanks around a cell are of whoever aligned the columns.
  for (std::string& cell : cells) {
    const std::size_t begin = std::min(cell.find_first_not_of(" \t"), cell.size());
    cell = cell.substr(begin, cell.find_last_not_of(" \t") + 1 - begin);
  }
  return cells;
}

constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

/// The column that `name` would be if it were in microseconds; empty where it is in them, or no time that is read.
std::string time_in_another_unit(std::string_view name) {
  constexpr std::array<std::string_view, 7> kTimeColumns = {
      "dispatch", "combine", "latency", "dispatch_transmit", "dispatch_notify", "combine_transmit", "combine_notify"};
  const std::size_t end = name.rfind('_');
  if (end == std::string_view::npos) return {};
  const std::string_view unit = name.substr(end + 1);
  const bool other = unit == "ms" || unit == "ns" || unit == "s" || unit == "sec" || unit == "seconds";
  const bool known = std::find(kTimeColumns.begin(), kTimeColumns.end(), name.substr(0, end)) != kTimeColumns.end();
  return other && known ? fmt::format("{}_us", name.substr(0, end)) : std::string();
}

/// The names of columns and where they are. Throws kCorruptInput for a header that would be misread in silence.
std::map<std::string, std::size_t> read_header(const std::vector<std::string>& cells, std::string_view file,
                                               std::size_t line) {
  std::map<std::string, std::size_t> columns;
  for (std::size_t idx = 0; idx < cells.size(); ++idx) {
    const std::string& name = cells[idx];
    if (name.find(';') != std::string::npos || name.find('\t') != std::string::npos) {
      throw Error(
          ErrorCode::kCorruptInput,
          fmt::format("{}:{}: the header has no commas between its columns; separate cells by commas", file, line));
    }
    if (const std::string time = time_in_another_unit(name); !time.empty()) {
      throw Error(
          ErrorCode::kCorruptInput,
          fmt::format("{}:{}: column {} is not in microseconds; convert it and name it {}", file, line, name, time));
    }
    if (!columns.emplace(name, idx).second) {
      throw Error(ErrorCode::kCorruptInput, fmt::format("{}:{}: column {} is there twice", file, line, name));
    }
  }
  return columns;
}

/// A line of a table with the names of its columns.
class TableLine {
 public:
  TableLine(std::string_view file, std::size_t number, const std::map<std::string, std::size_t>& columns,
            std::vector<std::string> cells)
      : file_(file), number_(number), columns_(columns), cells_(std::move(cells)) {
    if (cells_.size() != columns_.size()) {
      throw Error(ErrorCode::kCorruptInput,
                  fmt::format("{}:{}: {} cells under {} columns", file_, number_, cells_.size(), columns_.size()));
    }
  }

  [[nodiscard]] std::size_t number() const noexcept { return number_; }
  [[nodiscard]] bool has(const std::string& column) const { return columns_.contains(column); }

  [[nodiscard]] std::string text(const std::string& column, std::string_view otherwise) const {
    const auto found = columns_.find(column);
    return found == columns_.end() || cells_[found->second].empty() ? std::string(otherwise) : cells_[found->second];
  }

  [[nodiscard]] double number_of(const std::string& column) const {
    const auto found = columns_.find(column);
    if (found == columns_.end()) fail(column, "is missing from the header");
    const std::string& cell = cells_[found->second];
    double value = 0.0;
    const auto [end, error] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
    if (error != std::errc() || end != cell.data() + cell.size() || !(value >= 0.0) || value > kMaxNumber) {
      fail(column, fmt::format("is '{}'; it must be a number from 0 to {}", cell, kMaxNumber));
    }
    return value;
  }

  [[nodiscard]] double number_of(const std::string& column, double otherwise) const {
    return text(column, "").empty() ? otherwise : number_of(column);
  }

  [[nodiscard]] double positive(const std::string& column) const {
    const double value = number_of(column);
    if (value <= 0.0) fail(column, "is 0; it must be positive");
    return value;
  }

  [[noreturn]] void fail(std::string_view column, std::string_view reason) const {
    throw Error(ErrorCode::kCorruptInput, fmt::format("{}:{}: {} {}", file_, number_, column, reason));
  }

 private:
  std::string_view file_;
  std::size_t number_;
  const std::map<std::string, std::size_t>& columns_;
  std::vector<std::string> cells_;
};

/// Of a line that is as it should be, but of something that no curve is for.
class UnknownKind : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// By reason: where the first of such lines stands, and how many there are.
struct LinesLeftOut {
  std::size_t first = 0;
  std::size_t count = 0;
};

std::optional<Cluster> known_cluster(const std::string& name) {
  try {
    return find_cluster(name);
  } catch (const Error&) {
    return std::nullopt;
  }
}

/// The GPU of a table that does not name one: a part of its file's name.
std::string system_of_name(const std::string& stem) {
  for (std::size_t begin = 0; begin < stem.size();) {
    const std::size_t end = std::min(stem.find('_', begin), stem.size());
    const std::string part = stem.substr(begin, end - begin);
    if (known_cluster(part)) return part;
    begin = end + 1;
  }
  return "unknown";
}

double log2_of(double value) { return std::log2(std::max(value, 1.0)); }

/// What lines of all kinds of tables share.
class TableReader {
 public:
  TableReader(std::string_view file, std::string stem) : file_(file), stem_(std::move(stem)) {}

  void read(const TableLine& line, MeasurementTable& table) {
    table_ = &table;
    // Such kernels are of racks; their tables do not say so.
    const bool rack = to_lower(line.text("kernel", "")).starts_with("nvlink") && !line.has("system");
    const std::string named = system_of_name(stem_);
    system_ = line.text("system", rack && named == "unknown" ? "gb200" : named);
    const std::optional<Cluster> known = known_cluster(system_);
    cluster_ = known.value_or(find_cluster("unknown"));
    // One GPU has one name, whatever tables call it.
    if (known) system_ = known->name;
    if (line.has("message_elems")) {
      read_collective(line);
    } else if (line.has("inter")) {
      read_gemm(line);
    } else if (line.has("phase")) {
      read_phase(line);
    } else if (line.has("num_sms")) {
      read_pair(line, "throughput");
    } else if (line.has("dispatch_us") || line.has("combine_us")) {
      read_pair(line, "low_latency");
    } else {
      throw Error(
          ErrorCode::kCorruptInput,
          fmt::format(
              "{}: no column tells what was measured; a table has message_elems, inter, phase, num_sms, dispatch_us "
              "or combine_us, as docs/calibrate.md describes",
              file_));
    }
  }

 private:
  struct Shape {
    double tokens, ranks, hidden, top_k, experts;
  };

  [[nodiscard]] static Shape read_shape(const TableLine& line) {
    Shape shape{.tokens = line.positive("tokens_per_rank"),
                .ranks = line.positive("ep_size"),
                .hidden = line.positive("hidden"),
                .top_k = line.positive("topk"),
                .experts = line.positive("num_experts")};
    if (shape.top_k > shape.experts) line.fail("topk", "is larger than num_experts");
    return shape;
  }

  /// GPUs that reach each other without the network: the domain of the GPU, or what the table says of an unknown one.
  [[nodiscard]] double domain_size(const TableLine& line, double ranks) const {
    const double nodes = line.number_of("node_num", 0);
    if (cluster_.name == "unknown" && nodes > 0) return ranks / nodes;
    return cluster_.gpus_per_domain();
  }

  void add(const TableLine& line, std::string curve, Observation observation) {
    if (observation.us <= 0.0) line.fail("a time", "is 0; it must be positive");
    observation.table = table_->name;
    table_->times.push_back({.curve = std::move(curve), .observation = std::move(observation), .line = line.number()});
  }

  void read_pair(const TableLine& line, const std::string& mode) {
    const Shape shape = read_shape(line);
    const double num_sms = line.number_of("num_sms", 0);
    for (const bool dispatch : {true, false}) {
      const std::string phase = dispatch ? "dispatch" : "combine";
      const bool split = line.has(phase + "_transmit_us");
      if (!split && !line.has(phase + "_us")) continue;
      const double us = split ? line.positive(phase + "_transmit_us") + line.number_of(phase + "_notify_us", 0)
                              : line.positive(phase + "_us");
      // DeepEP sends fp8 with a scale per 128 elements, low-latency rows with a header, and brings bf16 back.
      const double header = mode == "low_latency" ? 16 : 0;
      const double row_bytes = dispatch ? shape.hidden + 4 * shape.hidden / 128 + header : 2 * shape.hidden;
      const ExchangeWork base = exchange_base(cluster_, shape.ranks, domain_size(line, shape.ranks));
      const ExchangeShape exchange{
          .tokens_per_rank = shape.tokens,
          .num_ranks = shape.ranks,
          .top_k = shape.top_k,
          .distinct_ranks = expected_distinct_groups(shape.experts, shape.top_k, shape.ranks),
          .distinct_domains = expected_distinct_groups(shape.experts, shape.top_k, base.num_domains),
          .row_bytes = row_bytes};
      ExchangeWork work =
          mode == "low_latency" ? low_latency_work(base, exchange) : throughput_work(base, exchange, num_sms);
      const std::string curve = fmt::format("{} {}", mode, phase);
      Observation observation{
          .table = {},
          .label = fmt::format("{} {} EP {} {} tokens{}", system_, phase, shape.ranks, shape.tokens,
                               num_sms > 0 ? fmt::format(" {} SMs", num_sms) : ""),
          .point = {.path = {system_, line.text("version", "")},
                    .position = {log2_of(shape.tokens), log2_of(shape.ranks), log2_of(num_sms), log2_of(row_bytes),
                                 log2_of(shape.experts), crossing_position(work)}},
          .work = work,
          .us = us};
      add(line, curve, observation);
      if (split && line.number_of(phase + "_notify_us", 0) > 0) {
        // What moving rows takes by itself tells its start from that of the exchange of counts.
        work.counts_exchanged = false;
        observation.work = work;
        observation.us = line.positive(phase + "_transmit_us");
        observation.for_constants_only = true;
        add(line, curve, std::move(observation));
      }
    }
  }

  void read_phase(const TableLine& line) {
    const Shape shape = read_shape(line);
    const std::string dtype = line.text("moe_dtype", "bfloat16");
    const std::string phase = line.text("phase", "");
    const std::string kernel = line.text("kernel", "");
    const std::string side = to_lower(kernel).find("twosided") != std::string::npos ? "two_sided" : "one_sided";
    const bool combine = phase.starts_with("combine");
    double row_bytes = 2 * shape.hidden;
    if (phase == "combine_low_precision") row_bytes = shape.hidden;
    if (phase == "dispatch" && dtype.starts_with("fp8")) row_bytes = shape.hidden;
    if (phase == "dispatch" && dtype == "nvfp4") row_bytes = shape.hidden / 2 + shape.hidden / 16;
    if (phase == "prepare") row_bytes = 8 * shape.top_k;  // ids and weights
    if (phase != "prepare" && phase != "dispatch" && !combine) {
      line.fail("phase", fmt::format("is '{}'; it must be prepare, dispatch or combine", phase));
    }
    // Routing there is balanced by construction: as many ranks as a token can reach.
    const ExchangeShape exchange{.tokens_per_rank = shape.tokens,
                                 .num_ranks = shape.ranks,
                                 .top_k = shape.top_k,
                                 .distinct_ranks = std::min(shape.top_k, shape.ranks),
                                 .row_bytes = row_bytes};
    const ExchangeWork base = exchange_base(cluster_, shape.ranks, domain_size(line, shape.ranks));
    ExchangeWork work = one_sided_work(base, exchange, cluster_.num_sms());
    if (phase == "prepare") {
      work.self_bytes = 0.0;
      work.link_bytes = shape.tokens * row_bytes;
    }
    const std::string curve = combine ? "combine" : phase;
    add(line, (side == "one_sided" && phase == "prepare" ? "two_sided" : side) + " " + curve,
        {.table = {},
         .label = fmt::format("{} {} {} {} EP {} {} tokens", system_, kernel, phase, dtype, shape.ranks, shape.tokens),
         .point = {.path = {system_, phase, dtype},
                   .position = {log2_of(shape.tokens), log2_of(shape.ranks), 0.0, log2_of(row_bytes),
                                log2_of(shape.experts), crossing_position(work)}},
         .work = work,
         .us = line.positive("latency_us")});
  }

  void read_collective(const TableLine& line) {
    const double ranks = line.positive("num_gpus");
    const std::string op = line.text("op", "");
    if (op != "all_gather" && op != "alltoall" && op != "reduce_scatter") {
      line.fail("op", fmt::format("is '{}'; it must be all_gather, alltoall or reduce_scatter", op));
    }
    const std::string dtype = line.text("dtype", "half");
    const double bytes = line.positive("message_elems") * (dtype == "int8" ? 1 : dtype == "float" ? 4 : 2);
    const ExchangeWork work = collective_work(exchange_base(cluster_, ranks, domain_size(line, ranks)), ranks, bytes);
    add(line, op,
        {.table = {},
         .label = fmt::format("{} {} {} GPUs {} bytes", system_, op, ranks, bytes),
         .point = {.path = {system_, line.text("nccl_version", "")}, .position = {log2_of(bytes), log2_of(ranks)}},
         .work = work,
         .us = line.positive("latency_us")});
  }

  void read_gemm(const TableLine& line) {
    const double tokens = line.positive("global_tokens");
    const double ranks = line.positive("ep_size");
    const double experts = line.positive("num_experts");
    const double hidden = line.positive("hidden");
    const double ffn = line.positive("inter");
    const double top_k = line.positive("topk");
    const std::string dtype = line.text("moe_dtype", "bfloat16");
    const std::string distribution = line.text("distribution", "balanced");
    const std::optional<double> exponent = power_law_exponent(distribution);
    GemmShape shape{.global_tokens = tokens,
                    .num_ranks = ranks,
                    .num_experts = experts,
                    .top_k = top_k,
                    .hidden = hidden,
                    .expert_ffn = ffn};
    if (dtype == "fp8") {
      shape.type = ExpertType::kFp8;
    } else if (dtype == "fp8_block") {
      shape.type = ExpertType::kFp8Block;
    } else if (dtype.find("fp4") != std::string::npos) {
      shape.type = ExpertType::kFp4;
    } else if (dtype != "bfloat16" && dtype != "float16") {
      throw UnknownKind(
          fmt::format("moe_dtype is '{}', and only bfloat16, float16, fp8, fp8_block and fp4 have a model", dtype));
    }
    GemmWork work = gemm_work(cluster_, shape);
    // Whoever has seen even rows only has not seen this.
    std::vector<std::string> path = {line.text("kernel", ""), system_, line.text("framework", "")};
    if (exponent) {
      const RankLoad load = load_of(shape, *exponent);
      work.rows = load.rows;
      work.active_experts = load.active_experts;
      path.emplace_back("power law");
    }
    // A benchmark multiplies by the same weights again and again; a step of a model has read those of all layers since.
    work.cache_bytes = cache_bytes(cluster_);
    const std::string curve = fmt::format("gemm {}", to_string(shape.type));
    add(line, curve,
        {.table = {},
         .label = fmt::format("{} {} {} EP {} {} tokens{}", system_, line.text("kernel", ""), dtype, ranks, tokens,
                              exponent ? " " + distribution : ""),
         .point = {.path = std::move(path),
                   .position = {log2_of(tokens), log2_of(work.rows / work.active_experts), log2_of(ranks),
                                log2_of(hidden), log2_of(ffn), log2_of(experts)}},
         .work = work,
         .us = line.positive("latency_us")});
  }

  /// Nothing where experts are loaded evenly, or are balanced by copies.
  [[nodiscard]] static std::optional<double> power_law_exponent(const std::string& distribution) {
    constexpr std::string_view kPowerLaw = "power_law_";
    constexpr std::string_view kBalancedByCopies = "_eplb";
    constexpr double kMaxExponent = 10;
    if (distribution == "balanced" || distribution == "uniform") return std::nullopt;
    std::string_view number = distribution;
    if (number.starts_with(kPowerLaw)) {
      number.remove_prefix(kPowerLaw.size());
      const bool balanced = number.ends_with(kBalancedByCopies);
      if (balanced) number.remove_suffix(kBalancedByCopies.size());
      double exponent = 0.0;
      const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), exponent);
      if (error == std::errc() && end == number.data() + number.size() && exponent >= 0 && exponent <= kMaxExponent) {
        return balanced ? std::nullopt : std::optional(exponent);
      }
    }
    throw UnknownKind(fmt::format(
        "distribution is '{}', and only balanced, uniform, power_law_EXPONENT and power_law_EXPONENT_eplb have a model",
        distribution));
  }

  /// A table asks for few loads, in many lines each.
  [[nodiscard]] const RankLoad& load_of(const GemmShape& shape, double exponent) {
    const std::array<double, 5> key = {shape.global_tokens, shape.num_ranks, shape.num_experts, shape.top_k, exponent};
    const auto found = loads_.find(key);
    return found != loads_.end() ? found->second : loads_.emplace(key, power_law_load(shape, exponent)).first->second;
  }

  std::map<std::array<double, 5>, RankLoad> loads_;
  std::string_view file_;
  std::string stem_;
  std::string system_;
  Cluster cluster_;
  MeasurementTable* table_ = nullptr;
};

}  // namespace

MeasurementTable parse_measurements(std::string_view text, std::string_view file) {
  MeasurementTable table;
  table.name = std::filesystem::path(file).stem().string();
  TableReader reader(file, table.name);
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  if (text.find('\n') == std::string_view::npos && text.find('\r') != std::string_view::npos) {
    throw Error(ErrorCode::kCorruptInput,
                fmt::format("{}: lines end with a carriage return alone; end them with a line feed", file));
  }
  std::map<std::string, std::size_t> columns;
  std::map<std::string, LinesLeftOut> left_out;
  std::size_t number = 0;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view row = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    ++number;
    if (row.empty() || row == "\r") continue;
    std::vector<std::string> cells = split_line(row);
    if (columns.empty()) {
      columns = read_header(cells, file, number);
      continue;
    }
    try {
      reader.read(TableLine(file, number, columns, std::move(cells)), table);
      ++table.num_rows;
    } catch (const UnknownKind& kind) {
      LinesLeftOut& lines = left_out[kind.what()];
      if (lines.count++ == 0) lines.first = number;
    }
  }
  for (const auto& [reason, lines] : left_out) {
    table.left_out.push_back(
        fmt::format("{}:{}: {} ({} line{})", file, lines.first, reason, lines.count, lines.count == 1 ? "" : "s"));
  }
  if (table.num_rows == 0 && !table.left_out.empty()) {
    throw Error(ErrorCode::kUnsupported, fmt::format("{}; it has no other lines", fmt::join(table.left_out, "; ")));
  }
  if (table.num_rows == 0) throw Error(ErrorCode::kCorruptInput, fmt::format("{}: there is no measurement", file));
  return table;
}

MeasurementTable read_measurements(const std::string& file) {
  const std::string text = read_whole_file(file);
  return file.ends_with(".json") ? parse_bench_record(text, file) : parse_measurements(text, file);
}

}  // namespace epistle
