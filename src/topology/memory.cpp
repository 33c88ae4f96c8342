#include "topology/memory.hpp"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/whole_file.hpp"

namespace epistle {
namespace {

/// Names of the files of one control group, version 2 and version 1.
struct CgroupFiles {
  std::string_view mount;
  std::string_view limit;
  std::string_view usage;
  std::string_view reclaimable;  ///< the line of memory.stat with page cache that can be dropped
};
constexpr CgroupFiles kVersion2 = {"/sys/fs/cgroup", "/memory.max", "/memory.current", "inactive_file"};
constexpr CgroupFiles kVersion1 = {"/sys/fs/cgroup/memory", "/memory.limit_in_bytes", "/memory.usage_in_bytes",
                                   "total_inactive_file"};

/// The number at the start of `text`, behind blanks. "max" and anything else is no number.
std::optional<std::int64_t> leading_number(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
  std::int64_t value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ec != std::errc()) return std::nullopt;
  return value;
}

/// The number behind `name` at the start of a line.
std::optional<std::int64_t> find_number(std::string_view text, std::string_view name) {
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    if (line.starts_with(name) && !line.substr(name.size()).starts_with('_')) {
      return leading_number(line.substr(name.size()));
    }
    text.remove_prefix(std::min(line.size() + 1, text.size()));
  }
  return std::nullopt;
}

std::optional<std::int64_t> read_number(const std::string& path) {
  const auto text = read_kernel_file(path);
  return text ? leading_number(*text) : std::nullopt;
}

void lower(AvailableMemory& least, const AvailableMemory& other) {
  if (least.bytes >= 0 && least.bytes <= other.bytes) return;
  least = other;
  least.bytes = std::max(other.bytes, std::int64_t{0});
}

/// Every group from the process's own up to the root may have a limit. In a container the path is often that of the
/// host, and only the root is there.
void lower_to_cgroups(const std::string& root, const CgroupFiles& files, std::string path, AvailableMemory& least) {
  while (true) {
    const std::string folder = root + std::string(files.mount) + (path == "/" ? "" : path);
    const auto limit = read_number(folder + std::string(files.limit));
    const auto usage = read_number(folder + std::string(files.usage));
    if (limit && usage) {
      const auto stat = read_kernel_file(folder + "/memory.stat");
      const std::int64_t reclaimable = stat ? find_number(*stat, files.reclaimable).value_or(0) : 0;
      lower(least, {.bytes = *limit - (*usage - reclaimable), .limit_bytes = *limit, .of_group = true});
    }
    if (path.empty() || path == "/") return;
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
}

}  // namespace

std::string_view AvailableMemory::owner() const noexcept { return of_group ? "this control group" : "this machine"; }

AvailableMemory available_memory(const std::string& root) {
  constexpr std::int64_t kKibi = 1024;
  AvailableMemory least;
  if (const auto meminfo = read_kernel_file(root + "/proc/meminfo")) {
    const auto available = find_number(*meminfo, "MemAvailable:");
    const auto total = find_number(*meminfo, "MemTotal:");
    if (available && total) lower(least, {.bytes = *available * kKibi, .limit_bytes = *total * kKibi});
  }
  // Lines "hierarchy:controllers:path"; version 2 has one line, with hierarchy 0 and no controllers.
  const std::string groups = read_kernel_file(root + "/proc/self/cgroup").value_or("");
  std::string_view rest = groups;
  while (!rest.empty()) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    const std::size_t path_colon = line.find(':', line.find(':') + 1);
    if (path_colon == std::string_view::npos) continue;
    const std::string_view controllers = line.substr(line.find(':') + 1, path_colon - line.find(':') - 1);
    const std::string path(line.substr(path_colon + 1));
    if (controllers.empty()) lower_to_cgroups(root, kVersion2, path, least);
    if (controllers == "memory") lower_to_cgroups(root, kVersion1, path, least);
  }
  return least;
}

std::int64_t memory_reserve_bytes(std::int64_t available_bytes) noexcept {
  // A part of what is available, but no more than so many bytes.
  constexpr std::int64_t kReservePart = 8;
  constexpr std::int64_t kMaxReserveBytes = std::int64_t{256} << 20;
  return std::min(available_bytes / kReservePart, kMaxReserveBytes);
}

void require_memory(std::int64_t num_bytes, const char* what, const char* hint) {
  constexpr std::int64_t kMinBytesToAsk = std::int64_t{16} << 20;
  if (num_bytes < kMinBytesToAsk) return;
  const AvailableMemory available = available_memory();
  const std::int64_t reserve = memory_reserve_bytes(available.bytes);
  if (available.bytes < 0 || num_bytes <= available.bytes - reserve) return;
  throw Error(ErrorCode::kOutOfMemory,
              fmt::format("{} need {} bytes of memory; {} of the {} bytes of {} are available, less a reserve of {}: "
                          "{}",
                          what, num_bytes, available.bytes, available.limit_bytes, available.owner(), reserve, hint));
}

}  // namespace epistle
