#include "doctor_report.hpp"

#include <algorithm>
#include <cstddef>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "epistle/dispatcher_info.hpp"
#include "epistle/version.hpp"

#include "core/complaint.hpp"
#include "core/settings.hpp"
#include "fabric/rails.hpp"
#include "report/format.hpp"
#include "report/table.hpp"
#include "topology/machine.hpp"
#include "topology/node_affinity.hpp"

namespace epistle::cli {
namespace {

constexpr const char* kWithoutGpu =
    "the host device with all its dispatchers (ranks as threads or processes), select and its check of configurations, "
    "traces, models; what a CUDA dispatcher can do and takes is told without one";

Json optional_json(const std::optional<bool>& value) { return value ? Json(*value) : Json(nullptr); }

Json proof_json(const BackendProof& proof) {
  return {{"name", proof.name},
          {"device", proof.device},
          {"version", proof.version},
          {"available", proof.available()},
          {"proved", proof.proved()},
          {"levels",
           {{"selected", proof.selected},
            {"imported", optional_json(proof.imported)},
            {"initialised", optional_json(proof.initialised)},
            {"steady", optional_json(proof.steady)}}},
          {"reason", proof.reason},
          {"fix", proof.available() && proof.steady ? "" : proof.fix}};
}

/// Ours as one backend of a selection: its CUDA device.
Json epistle_json(const DoctorReport& report) {
  BackendProof best{.name = "epistle", .device = "cuda", .selected = true};
  for (const BackendProof& proof : report.own) {
    if (proof.device != "cuda" || proof.name == "alltoall") continue;
    const bool better = best.reason.empty() || (proof.steady.value_or(false) && !best.steady.value_or(false));
    if (!better) continue;
    best = proof;
    best.name = "epistle";
    if (best.reason.empty()) best.reason = "iterations ran, every bit right";
  }
  best.version = EPISTLE_VERSION_STRING;
  Json json = proof_json(best);
  // Compiled in is not there: without a GPU nothing has run.
  json["available"] = best.steady.value_or(false);
  return json;
}

/// Null where the GPU's node is not told.
Json affinity_json(const GpuProbe& gpu) {
  const auto affinity = node_affinity(gpu.numa_node);
  if (!affinity) return nullptr;
  return {{"units_of_node", affinity->num_units}, {"open_to_this_process", affinity->num_open}};
}

std::string affinity_text(const GpuProbe& gpu) {
  const auto affinity = node_affinity(gpu.numa_node);
  if (!affinity) return gpu.numa_node < 0 ? "not told" : std::to_string(gpu.numa_node);
  const char* const fix = affinity->num_open == 0 ? ": bind its rank there (numactl, taskset)" : "";
  return fmt::format("{} ({} of its {} hardware threads open to this process{})", gpu.numa_node, affinity->num_open,
                     affinity->num_units, fix);
}

Json probe_json(const NvmlProbe& probe) {
  Json list = Json::array();
  for (const GpuProbe& gpu : probe.gpus) {
    list.push_back({{"name", gpu.name},
                    {"uuid", gpu.uuid},
                    {"architecture", gpu.architecture},
                    {"pci_address", gpu.pci_address},
                    {"memory_bytes", gpu.memory_bytes},
                    {"free_memory_bytes", gpu.free_memory_bytes},
                    {"num_active_nvlinks", gpu.num_active_nvlinks},
                    {"nvlink_peers", gpu.nvlink_peers},
                    {"numa_node", gpu.numa_node},
                    {"affinity", affinity_json(gpu)},
                    {"fabric_cluster", gpu.fabric_cluster},
                    {"fabric_clique", gpu.fabric_clique}});
  }
  return list;
}

Json host_json() {
  const MachineInfo& machine = machine_info();
  return {{"name", machine.host},
          {"cpu", machine.cpu_model},
          {"architecture", machine.architecture},
          {"kernel", machine.kernel},
          {"num_packages", machine.num_packages},
          {"num_numa_nodes", machine.num_numa_nodes},
          {"num_cores", machine.num_cores},
          {"num_processing_units", machine.num_processing_units},
          {"num_usable_processing_units", machine.num_usable_processing_units},
          {"memory_bytes", machine.memory_bytes}};
}

/// What a group over several hosts can be given, by device.
Json dispatchers_over_hosts() {
  Json names = {{"host", Json::array()}, {"cuda", Json::array()}};
  for (const DispatcherInfo* info : dispatchers()) {
    if (info->capabilities().joins_hosts) names[std::string(to_string(info->device()))].push_back(info->name());
  }
  return names;
}

/// Cards that carry something, and those of them that a GPU has for itself.
Json cards_json(const DoctorReport& report) {
  const auto is_active = [](const NicPort& nic) { return nic.state.find("ACTIVE") != std::string::npos; };
  const auto num_active = std::count_if(report.nics.begin(), report.nics.end(), is_active);
  const auto num_gpus = static_cast<double>(report.gpus.gpus.size());
  return {{"nics", report.nics.size()},
          {"active_nics", num_active},
          {"nics_per_gpu", num_gpus > 0 ? Json(static_cast<double>(num_active) / num_gpus) : Json(nullptr)},
          {"rails", report.fabric.nics.size()},
          {"dispatchers", dispatchers_over_hosts()}};
}

Json fabric_json(const FabricProbe& fabric) {
  Json ways = Json::array();
  for (const FabricWay& way : fabric.ways) {
    ways.push_back({{"provider", way.provider},
                    {"domain", way.domain},
                    {"fabric", way.fabric},
                    {"address", way.address},
                    {"keeps_order", way.is_ordered},
                    {"gpu_memory", way.reaches_gpu_memory}});
  }
  return {{"library", fabric.library},
          {"chosen", fabric.chosen},
          {"nics", fabric.nics},
          {"missing", fabric.missing},
          {"ways", ways}};
}

Json nic_json(const std::vector<NicPort>& nics) {
  Json list = Json::array();
  for (const NicPort& nic : nics) {
    list.push_back({{"device", nic.device},
                    {"port", nic.port},
                    {"kind", to_string(nic.kind)},
                    {"state", nic.state},
                    {"gigabits_per_s", nic.gigabits_per_s},
                    {"driver", nic.driver},
                    {"numa_node", nic.numa_node}});
  }
  return list;
}

Json memory_json(const DoctorReport& report) {
  Json list = Json::array();
  for (const MemoryNeed& need : report.memory) {
    const bool known = need.refused.empty();
    list.push_back({{"dispatcher", need.dispatcher},
                    {"device", need.device},
                    {"initial_bytes", known ? Json(need.initial_bytes) : Json(nullptr)},
                    {"largest_bytes", known ? Json(need.largest_bytes) : Json(nullptr)},
                    {"fits", optional_json(need.fits)},
                    {"refused", need.refused}});
  }
  const DispatcherConfig& config = report.question.config;
  return {{"ranks", report.question.num_ranks}, {"hidden", config.hidden},
          {"num_experts", config.num_experts},  {"top_k", config.top_k},
          {"max_tokens", config.max_tokens},    {"per_rank", list}};
}

std::string_view level_mark(const std::optional<bool>& level) { return level ? (*level ? "yes" : "NO") : "-"; }

std::string render_proofs(const std::vector<BackendProof>& proofs) {
  Table table({{"backend", Align::kLeft},
               {"device", Align::kLeft},
               {"selected", Align::kLeft},
               {"imported", Align::kLeft},
               {"initialised", Align::kLeft},
               {"steady", Align::kLeft},
               {"why, and what to do", Align::kLeft}});
  for (const BackendProof& proof : proofs) {
    const bool done = proof.steady.value_or(false);
    table.add_row({proof.name, proof.device, proof.selected ? "yes" : "NO", std::string(level_mark(proof.imported)),
                   std::string(level_mark(proof.initialised)), std::string(level_mark(proof.steady)),
                   done ? "" : fmt::format("{}; {}", proof.reason, proof.fix)});
  }
  return table.render();
}

std::string render_gpus(const NvmlProbe& probe, const NvlinkFabric& fabric) {
  if (probe.gpus.empty()) {
    return fmt::format("GPUs: none ({})\n  What is left: {}\n",
                       probe.missing.empty() ? "the driver lists none" : probe.missing, kWithoutGpu);
  }
  std::string text =
      fmt::format("GPUs: {} (driver {}, CUDA {})\n", probe.gpus.size(), probe.driver_version, probe.cuda_version);
  for (std::size_t idx = 0; idx < probe.gpus.size(); ++idx) {
    const GpuProbe& gpu = probe.gpus[idx];
    text += fmt::format("  {}: {}, {}, {} ({} free), {} NVLinks, NUMA node {}\n", idx, gpu.name, gpu.architecture,
                        format_bytes(gpu.memory_bytes), format_bytes(gpu.free_memory_bytes), gpu.num_active_nvlinks,
                        affinity_text(gpu));
  }
  for (const auto& group : nvlink_groups(probe)) text += fmt::format("  NVLink domain: {}\n", fmt::join(group, ", "));
  text += fabric.fabric.empty() ? fmt::format("  NVLink between hosts: none ({})\n", fabric.lack)
                                : fmt::format("  NVLink between hosts: fabric {}\n", fabric.fabric);
  return text;
}

}  // namespace

Json doctor_json(const DoctorReport& report) {
  Json backends = Json::array();
  backends.push_back(epistle_json(report));
  for (const BackendProof& proof : report.packages) backends.push_back(proof_json(proof));
  Json own = Json::array();
  for (const BackendProof& proof : report.own) own.push_back(proof_json(proof));
  const bool any_gpu = !report.gpus.gpus.empty();
  return {
      {"versions",
       {{"epistle", EPISTLE_VERSION_STRING},
        {"driver", report.gpus.driver_version},
        {"cuda", report.gpus.cuda_version},
        {"nccl", report.nccl_version},
        {"python", report.python.python},
        {"torch", report.python.torch},
        {"torch_cuda", report.python.torch_cuda},
        {"torch_nccl", report.python.torch_nccl}}},
      {"hardware", preset_of(report.gpus)},
      {"gpus", probe_json(report.gpus)},
      {"nvlink_domains", nvlink_groups(report.gpus)},
      {"nvlink_fabric", {{"fabric", report.nvlink_fabric.fabric}, {"lack", report.nvlink_fabric.lack}}},
      {"no_gpu", any_gpu ? Json(nullptr)
                         : Json{{"reason", report.gpus.missing.empty() ? "the driver lists none" : report.gpus.missing},
                                {"what_is_left", kWithoutGpu}}},
      {"host", host_json()},
      {"nics", nic_json(report.nics)},
      {"network", cards_json(report)},
      {"fabric", fabric_json(report.fabric)},
      {"dispatchers", own},
      {"backends", backends},
      {"memory", memory_json(report)}};
}

std::string render_doctor(const DoctorReport& report) {
  const MachineInfo& machine = machine_info();
  std::string text = render_gpus(report.gpus, report.nvlink_fabric);
  text += fmt::format("Host: {}, {} cores, {} of {} hardware threads open to this process, {} NUMA nodes, {}\n",
                      machine.cpu_model, machine.num_cores, machine.num_usable_processing_units,
                      machine.num_processing_units, machine.num_numa_nodes, format_bytes(machine.memory_bytes));
  if (report.nics.empty()) text += "Network: no card for RDMA\n";
  for (const NicPort& nic : report.nics) {
    text += fmt::format("Network: {} port {}, {}, {} Gbit/s, {}\n", nic.device, nic.port, to_string(nic.kind),
                        nic.gigabits_per_s, nic.state);
  }
  text += report.fabric.chosen.empty() ? fmt::format("Between hosts: {}\n", report.fabric.missing)
                                       : fmt::format("Between hosts: {}, of {} ways by {}\n", report.fabric.chosen,
                                                     report.fabric.ways.size(), report.fabric.library);
  const Json over_hosts = dispatchers_over_hosts();
  const auto names = [&](const char* device) { return over_hosts.at(device).get<std::vector<std::string>>(); };
  text += fmt::format("  rails of a host: {}; dispatchers over hosts: {} (host), {} (cuda)\n",
                      report.fabric.nics.size(), fmt::join(names("host"), ", "), fmt::join(names("cuda"), ", "));
  text += fmt::format("NCCL: {}\n", report.nccl_version.empty() ? "not found" : report.nccl_version);
  if (!report.python.python.empty())
    text += fmt::format("Python {}, torch {}\n", report.python.python,
                        report.python.torch.empty() ? "not there" : report.python.torch);
  if (!report.python.missing.empty()) text += fmt::format("Python: {}\n", report.python.missing);
  text += "\nDispatchers of Epistle, run here\n" + render_proofs(report.own);
  text += "\nOther backends\n" + render_proofs(report.packages);
  const DispatcherConfig& config = report.question.config;
  text += fmt::format("\nMemory of a rank: {} ranks, hidden {}, {} experts, top-{}, {} tokens\n",
                      report.question.num_ranks, config.hidden, config.num_experts, config.top_k, config.max_tokens);
  Table table({{"dispatcher", Align::kLeft},
               {"device", Align::kLeft},
               {"at first", Align::kRight},
               {"at most", Align::kRight},
               {"fits", Align::kLeft}});
  for (const MemoryNeed& need : report.memory) {
    const bool known = need.refused.empty();
    table.add_row({need.dispatcher, need.device, known ? format_bytes(need.initial_bytes) : "-",
                   known ? format_bytes(need.largest_bytes) : "-",
                   known ? std::string(level_mark(need.fits)) : need.refused});
  }
  return text + table.render();
}

FabricProbe probe_fabric() {
  FabricProbe probe{.library = describe_fabric_library(), .ways = {}, .nics = {}, .chosen = {}, .missing = {}};
  const Complaint complaint = attempt([&] {
    const FabricRequest request{.provider = settings().fabric_provider(), .nics = parse_nics(settings().fabric_nics())};
    probe.ways = list_fabric_ways(request);
    (void)choose_fabric_way(request);
    for (const std::size_t rail : list_rails(probe.ways, request)) probe.nics.push_back(probe.ways[rail].domain);
    probe.chosen = fmt::format("{} over {}", probe.ways[list_rails(probe.ways, request).front()].provider,
                               fmt::join(probe.nics, ", "));
  });
  if (complaint) probe.missing = complaint->message();
  return probe;
}

}  // namespace epistle::cli
