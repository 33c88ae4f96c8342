// Published figures, dense rates, one direction. What is reached of them is a matter of calibration, not of this table.
#include <algorithm>
#include <vector>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/ascii.hpp"
#include "topology/cluster.hpp"

namespace epistle {
namespace {

struct PresetRow {
  std::string_view name;
  std::string_view aliases;  ///< separated by commas
  std::string_view title;
  std::string_view gpu_architecture;
  ScaleUpLink link;
  std::array<double, kNumClusterFields> values;
  std::string_view source;
  std::string_view date;
};

// clang-format off
// name, aliases, title, architecture, link,
//   {gpus per domain, link B/s, cards per GPU, card B/s, SMs, memory, memory B/s,
//    bf16, fp8, fp4 FLOP/s, multicast, in-network reduction}, source, date
constexpr std::array kRows = {
    PresetRow{"h100-hgx", "h100,h100_sxm", "8 x H100 SXM, ConnectX-7", "sm_90", ScaleUpLink::kNvLink,
        {8, 450e9, 1, 50e9, 132, 85.5e9, 3.35e12, 989.4e12, 1978.9e12, 0, 1, 1},
        "NVIDIA H100 data sheet; memory as the driver reports it", "2023"},
    PresetRow{"h200-hgx", "h200,h200_sxm", "8 x H200 SXM, ConnectX-7", "sm_90", ScaleUpLink::kNvLink,
        {8, 450e9, 1, 50e9, 132, 150.7e9, 4.8e12, 989.4e12, 1978.9e12, 0, 1, 1},
        "NVIDIA H200 data sheet; memory as the driver reports it", "2024"},
    PresetRow{"b200", "b200_sxm,b200-hgx", "8 x B200, ConnectX-7", "sm_100", ScaleUpLink::kNvLink,
        {8, 900e9, 1, 50e9, 148, 180e9, 8e12, 2.25e15, 4.5e15, 9e15, 1, 1},
        "NVIDIA DGX B200 data sheet", "2024"},
    PresetRow{"b300", "b300_sxm,b300-hgx", "8 x B300, ConnectX-8", "sm_103", ScaleUpLink::kNvLink,
        {8, 900e9, 1, 100e9, 148, 288e9, 8e12, 2.25e15, 4.5e15, 13.5e15, 1, 1},
        "NVIDIA DGX B300 data sheet", "2025"},
    PresetRow{"gb200-nvl72", "gb200", "GB200 NVL72, ConnectX-7", "sm_100", ScaleUpLink::kNvLink,
        {72, 900e9, 1, 50e9, 152, 186e9, 8e12, 2.5e15, 5e15, 10e15, 1, 1},
        "NVIDIA GB200 NVL72 data sheet", "2024"},
    PresetRow{"gb300-nvl72", "gb300", "GB300 NVL72, ConnectX-8", "sm_103", ScaleUpLink::kNvLink,
        {72, 900e9, 1, 100e9, 152, 288e9, 8e12, 2.5e15, 5e15, 15e15, 1, 1},
        "NVIDIA GB300 NVL72 data sheet", "2025"},
    PresetRow{"h20", "h20_sxm,h20-hgx", "8 x H20, ConnectX-7", "sm_90", ScaleUpLink::kNvLink,
        {8, 450e9, 1, 50e9, 78, 96e9, 4e12, 148e12, 296e12, 0, 1, 1},
        "NVIDIA H20 product brief", "2023"},
    PresetRow{"a100", "a100_sxm,a100-hgx", "8 x A100 SXM 80 GB, ConnectX-6", "sm_80", ScaleUpLink::kNvLink,
        {8, 300e9, 1, 25e9, 108, 80e9, 2.039e12, 312e12, 0, 0, 0, 0},
        "NVIDIA A100 data sheet", "2021"},
    PresetRow{"rtx-pro-6000", "rtx_pro_6000,rtx_pro_6000_server", "8 x RTX PRO 6000 Blackwell over PCIe 5 x16", "sm_120",
        ScaleUpLink::kPcie,
        {8, 64e9, 1, 50e9, 188, 96e9, 1.597e12, 0.5e15, 1e15, 2e15, 0, 0},
        "NVIDIA RTX PRO 6000 Blackwell Server data sheet", "2025"},
    PresetRow{"mi300x", "mi300x-oam", "8 x MI300X", "gfx942", ScaleUpLink::kInfinityFabric,
        {8, 448e9, 1, 50e9, 304, 192e9, 5.3e12, 1307.4e12, 2614.9e12, 0, 0, 0},
        "AMD MI300X data sheet: seven links of 64 GB/s", "2023"},
    // Every figure is the least of the GPUs above, so that what fits here fits on any of them.
    PresetRow{"unknown", "", "a GPU of which nothing is known", "unknown", ScaleUpLink::kPcie,
        {8, 64e9, 1, 25e9, 78, 80e9, 1.597e12, 148e12, 0, 0, 0, 0},
        "assumed: the least of the other presets", "2026-11-27"},
    // Its link is memory, an SM a worker thread of a rank.
    PresetRow{"host", "cpu", "ranks on the processors of one host, without GPUs", "host", ScaleUpLink::kPcie,
        {64, 10e9, 0, 0, 1, 64e9, 50e9, 1e12, 0, 0, 0, 0},
        "assumed: a server with eight channels of memory; measure it", "2026-11-28"},
};
// clang-format on

Cluster make_preset(const PresetRow& row) {
  Cluster cluster{.name = std::string(row.name),
                  .title = std::string(row.title),
                  .preset = std::string(row.name),
                  .gpu_architecture = std::string(row.gpu_architecture),
                  .link = row.link,
                  .constants = {}};
  for (std::size_t idx = 0; idx < kNumClusterFields; ++idx) {
    cluster.constants[idx] = {
        .value = row.values[idx], .source = std::string(row.source), .date = std::string(row.date)};
  }
  return cluster;
}

bool has_alias(const PresetRow& row, const std::string& name) {
  const std::string list = fmt::format(",{},{},", row.name, row.aliases);
  return !name.empty() && name.find(',') == std::string::npos && list.find("," + name + ",") != std::string::npos;
}

}  // namespace

std::span<const Cluster> cluster_presets() {
  static const std::vector<Cluster> presets = [] {
    std::vector<Cluster> all;
    for (const PresetRow& row : kRows) all.push_back(make_preset(row));
    return all;
  }();
  return presets;
}

const Cluster& find_cluster(std::string_view name) {
  const std::string wanted = to_lower(name);
  std::string names;
  for (std::size_t idx = 0; idx < kRows.size(); ++idx) {
    if (has_alias(kRows[idx], wanted)) return cluster_presets()[idx];
    names += (names.empty() ? "" : ", ") + std::string(kRows[idx].name);
  }
  throw Error(ErrorCode::kNotFound, fmt::format("there is no cluster '{}'; the presets are {}", name, names));
}

}  // namespace epistle
