// What a configuration would really run, and what is wrong with it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "select/check/config.hpp"
#include "select/query.hpp"
#include "select/version.hpp"

namespace epistle::check {

enum class Severity : std::int32_t { kInfo, kWarning, kError };

[[nodiscard]] std::string_view to_string(Severity severity) noexcept;

struct Finding {
  std::string rule;
  Severity severity = Severity::kWarning;
  std::int32_t line = 0;
  std::string flag;
  std::string message;
  std::string fix;
};

/// What is known besides the file.
struct CheckOptions {
  std::optional<Cluster> cluster;
  std::optional<Version> megatron;
  std::optional<Version> vllm;
  std::optional<Version> sglang;
};

/// A run with what follows from it.
struct RunFacts {
  const RunConfig& run;
  const CheckOptions& options;
  std::string would_run = {};  ///< the dispatcher, in the engine's words; "none" where nothing is exchanged
  std::int64_t ep = 1;
  bool ep_known = true;
  std::optional<std::int64_t> num_experts = {};
  std::optional<std::int64_t> hidden = {};
  std::optional<std::int64_t> top_k = {};
  std::optional<std::int64_t> domain_ranks = {};  ///< of one scale-up domain, where hardware or launcher tell
  std::optional<GpuClass> gpu = {};
  bool fp8 = false;

  [[nodiscard]] bool known_backend() const noexcept { return !would_run.empty() && would_run != "unknown"; }
};

using Findings = std::vector<Finding>;

/// One row: `find` adds what it finds. The functions look at facts and at nothing else.
struct CheckRule {
  std::string_view id;
  Engine engine;  ///< kUnknown: all
  Severity severity;
  std::string_view condition;  ///< in words
  void (*find)(const RunFacts&, const CheckRule&, Findings&);
  std::string_view source;
  std::string_view date;
};

[[nodiscard]] std::span<const CheckRule> common_checks() noexcept;
[[nodiscard]] std::span<const CheckRule> megatron_checks() noexcept;
[[nodiscard]] std::span<const CheckRule> megatron_graph_checks() noexcept;
[[nodiscard]] std::span<const CheckRule> megatron_layout_checks() noexcept;
[[nodiscard]] std::span<const CheckRule> megatron_router_checks() noexcept;
[[nodiscard]] std::span<const CheckRule> backend_checks() noexcept;
[[nodiscard]] std::span<const CheckRule> low_latency_checks() noexcept;
[[nodiscard]] std::span<const CheckRule> vllm_checks() noexcept;
[[nodiscard]] std::span<const CheckRule> sglang_checks() noexcept;
[[nodiscard]] std::vector<CheckRule> all_checks();

struct RunReport {
  Engine engine = Engine::kUnknown;
  std::int32_t line = 0;
  std::string would_run;
};

struct CheckReport {
  Engine engine = Engine::kUnknown;  ///< of the first run
  std::string would_run;             ///< of the first run; empty where there is none
  std::vector<RunReport> runs;
  Findings findings;  ///< by line
};

/// A value that is JSON, of one word or several; discarded where it is none.
[[nodiscard]] nlohmann::json json_of(const Setting& setting);

/// Experts besides the model's own: replicas that a load balancer places.
struct RedundantExperts {
  std::int64_t count = 0;
  const Setting* setting = nullptr;  ///< that says so; null where none does
  bool known = true;
};

/// What `run` says of them, in whichever way its engine takes it.
[[nodiscard]] RedundantExperts redundant_experts(const RunConfig& run);

[[nodiscard]] RunFacts make_run_facts(const RunConfig& run, const CheckOptions& options);

[[nodiscard]] CheckReport check_config(const ConfigFile& file, const CheckOptions& options);

/// Adds a finding of `rule` at `setting`.
void add_finding(Findings& findings, const CheckRule& rule, const Setting& setting, std::string message,
                 std::string fix);

}  // namespace epistle::check
