#include "topology/nic.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <system_error>

namespace epistle {
namespace {

namespace fs = std::filesystem;

/// The first line of a file of sysfs; empty where there is none.
std::string read_line(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

/// "4: ACTIVE" without its number.
std::string without_number(const std::string& line) {
  const std::size_t colon = line.find(": ");
  return colon == std::string::npos ? line : line.substr(colon + 2);
}

double parse_rate(const std::string& line) {
  double value = 0;
  const auto [rest, error] = std::from_chars(line.data(), line.data() + line.size(), value);
  return error == std::errc() && std::string_view(rest).starts_with(" Gb/sec") ? value : 0;
}

NicKind kind_of(const std::string& device, const std::string& driver, const std::string& link_layer) {
  if (driver == "efa" || device.starts_with("efa") || device.starts_with("rdmap")) return NicKind::kEfa;
  if (link_layer == "InfiniBand") return NicKind::kInfiniBand;
  if (link_layer == "Ethernet") return NicKind::kRoce;
  return NicKind::kOther;
}

std::int32_t parse_node(const std::string& line) {
  std::int32_t node = -1;
  std::from_chars(line.data(), line.data() + line.size(), node);
  return node;
}

}  // namespace

std::string_view to_string(NicKind kind) noexcept {
  constexpr std::array<std::string_view, 4> kNames = {"infiniband", "roce", "efa", "other"};
  return kNames[static_cast<std::size_t>(kind)];
}

std::vector<NicPort> probe_nics(const std::string& root) {
  std::vector<NicPort> ports;
  const fs::path devices = root + "/sys/class/infiniband";
  for (const std::string& device : names_in(devices)) {
    const fs::path folder = devices / device;
    std::error_code error;
    const std::string driver = fs::read_symlink(folder / "device" / "driver", error).filename().string();
    for (const std::string& name : names_in(folder / "ports")) {
      const fs::path port = folder / "ports" / name;
      NicPort nic;
      nic.device = device;
      nic.port = std::max(parse_node(name), 1);
      nic.driver = driver;
      nic.kind = kind_of(device, driver, read_line(port / "link_layer"));
      nic.state = without_number(read_line(port / "state"));
      nic.gigabits_per_s = parse_rate(read_line(port / "rate"));
      nic.numa_node = parse_node(read_line(folder / "device" / "numa_node"));
      ports.push_back(std::move(nic));
    }
  }
  return ports;
}

}  // namespace epistle
