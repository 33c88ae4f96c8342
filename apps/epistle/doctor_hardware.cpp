#include "doctor_hardware.hpp"

#include <algorithm>
#include <cstddef>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/json_field.hpp"
#include "json_text.hpp"

namespace epistle::cli {
namespace {

constexpr double kMostNicsPerGpu = 64;

/// Of the lists of GPUs that reach each other, the longest.
std::size_t largest_domain(const Json& domains, const std::string& file) {
  std::size_t largest = 0;
  for (const Json& domain : domains) {
    if (!domain.is_array())
      throw Error(ErrorCode::kCorruptInput, fmt::format("{}: nvlink_domains: must be lists of GPUs", file));
    largest = std::max(largest, domain.size());
  }
  return largest;
}

}  // namespace

std::optional<Cluster> hardware_of_report(const std::string& file) {
  const Json report = read_json_file(file);
  if (!report.is_object() || !report.contains("hardware") || !report.contains("nvlink_domains")) return std::nullopt;
  if (!report["hardware"].is_string() || !report["nvlink_domains"].is_array())
    throw Error(ErrorCode::kCorruptInput,
                fmt::format("{}: hardware and nvlink_domains must be a name and a list, as 'epistle doctor --json' "
                            "writes them",
                            file));
  Cluster cluster = find_cluster(text_at(report, "hardware"));
  const std::string source = fmt::format("{}, a report of epistle doctor", file);
  const std::size_t largest = largest_domain(report["nvlink_domains"], file);
  const bool rack = report.contains("nvlink_fabric") && !text_at(report["nvlink_fabric"], "fabric").empty();
  // Of a rack a machine sees its own GPUs only.
  if (largest > 0 && !rack) {
    cluster.constant(ClusterField::kGpusPerDomain) = {
        .value = static_cast<double>(largest), .source = source, .date = {}};
  }
  if (!report.contains("network") || !report["network"].is_object()) return cluster;
  const auto nics = report["network"].find("nics_per_gpu");
  if (nics == report["network"].end() || !nics->is_number()) return cluster;
  const auto per_gpu = nics->get<double>();
  // A machine without cards for RDMA may have a network all the same.
  if (per_gpu > 0 && per_gpu <= kMostNicsPerGpu)
    cluster.constant(ClusterField::kNicsPerGpu) = {.value = per_gpu, .source = source, .date = {}};
  return cluster;
}

}  // namespace epistle::cli
