// Versions of engines: "0.20", "0.20.1", "v0.11.0rc2". Without a third number all releases of the second are meant, and
// what the newest of them has counts.
#pragma once

#include <charconv>
#include <compare>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

namespace epistle {

inline constexpr std::int32_t kAnyPatch = std::numeric_limits<std::int32_t>::max();

struct Version {
  std::int32_t major = 0;
  std::int32_t minor = 0;
  std::int32_t patch = 0;
  friend auto operator<=>(const Version&, const Version&) = default;
};

/// The newest Megatron core that the tables know; taken where no version is given.
inline constexpr Version kNewestMegatron{0, 20};
/// From here on one option says the SMs of every flex backend, and `ncclep` is one of them.
inline constexpr Version kOneSmOption{0, 20};
/// Before it, only alltoall overlapped shared experts.
inline constexpr Version kFlexSharedOverlap{0, 18};
/// Before it, vLLM took the backend from the environment.
inline constexpr Version kVllmBackendOption{0, 11};
/// Before it, SGLang had a switch for DeepEP.
inline constexpr Version kSglangBackendOption{0, 5};

[[nodiscard]] inline std::string to_string(Version version) {
  const std::string text = std::to_string(version.major) + "." + std::to_string(version.minor);
  return version.patch == 0 || version.patch == kAnyPatch ? text : text + "." + std::to_string(version.patch);
}

/// Nothing where `text` does not start with a number and a dot with another.
[[nodiscard]] inline std::optional<Version> parse_version(std::string_view text) {
  if (text.starts_with('v')) text.remove_prefix(1);
  Version version;
  const char* const end = text.data() + text.size();
  const auto [dot, failed] = std::from_chars(text.data(), end, version.major);
  if (failed != std::errc() || dot == end || *dot != '.') return std::nullopt;
  const auto [rest, failed_minor] = std::from_chars(dot + 1, end, version.minor);
  if (failed_minor != std::errc() || version.major < 0 || version.minor < 0) return std::nullopt;
  version.patch = kAnyPatch;
  if (rest == end || *rest != '.') return version;
  std::int32_t patch = 0;
  // "0.20.post1" has no third number.
  if (std::from_chars(rest + 1, end, patch).ec == std::errc() && patch >= 0) version.patch = patch;
  return version;
}

}  // namespace epistle
