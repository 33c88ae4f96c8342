// What the records of several commands have in common: where they come from, and what was measured on what.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "bench_plan.hpp"
#include "json_text.hpp"
#include "measure/bench_types.hpp"
#include "measure/fingerprint.hpp"

namespace epistle::cli {

/// As --wire takes it.
[[nodiscard]] std::string_view wire_name(const ResolvedConfig& config) noexcept;

/// "13.0" from 13000
[[nodiscard]] std::string cuda_version_text(int version);

/// 0 where no time has passed.
[[nodiscard]] double bytes_per_s(std::int64_t num_bytes, double time_us) noexcept;

/// tool, command, commit and date, to begin a record with.
[[nodiscard]] Json provenance_json(std::string_view tool, const Fingerprint& fingerprint);

/// "passed", "failed" or "off".
[[nodiscard]] std::string_view verification_name(const BenchPlan& plan, const BenchResult& result) noexcept;

[[nodiscard]] Json config_json(const BenchPlan& plan);
[[nodiscard]] Json machine_json();
/// null on the host device.
[[nodiscard]] Json gpu_json(const BenchResult& result);
[[nodiscard]] Json versions_json(const Fingerprint& fingerprint);
[[nodiscard]] Json limit_json(const BenchResult& result);
/// null in a group of one host.
[[nodiscard]] Json network_json(const BenchResult& result);
[[nodiscard]] Json load_json(const BenchPlan& plan, const BenchResult& result);
/// `on_cuda` names what the limit is one of: the links, or copies on the host.
[[nodiscard]] Json phase_json(const PhaseResult& phase, bool on_cuda);
/// One object per dispatcher and phase.
[[nodiscard]] Json phases_json(const BenchResult& result);

/// Everything that must be equal where two times are to be compared: versions, devices, routing, shape, method and
/// environment. Not the name of the host, the commit or the date.
[[nodiscard]] Json stack_json(const BenchPlan& plan, const BenchResult& result);

/// A number that tells routing tables of all ranks from others, ids and weights, as 16 hexadecimal digits.
[[nodiscard]] std::string routing_hash(const std::vector<RoutingTable>& tables);

}  // namespace epistle::cli
