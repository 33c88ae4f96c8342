// What epistle doctor finds.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace epistle::cli {

/// How far a backend has shown that it works. A level that is not set was not tried.
struct BackendProof {
  std::string name;
  std::string device = {};               ///< "host", "cuda"
  std::string version = {};              ///< of the package; empty = not told
  bool selected = false;                 ///< it is known by that name
  std::optional<bool> imported = {};     ///< package or build has it
  std::optional<bool> initialised = {};  ///< its buffers were made
  std::optional<bool> steady = {};       ///< iterations ran, and their output was right
  std::string reason = {};               ///< of the first level that failed or was not tried
  std::string fix = {};

  /// The highest level that was shown.
  [[nodiscard]] const char* proved() const noexcept {
    if (steady.value_or(false)) return "steady";
    if (initialised.value_or(false)) return "initialised";
    if (imported.value_or(false)) return "imported";
    return selected ? "selected" : "none";
  }
  [[nodiscard]] bool failed() const noexcept {
    return !imported.value_or(true) || !initialised.value_or(true) || !steady.value_or(true);
  }
  /// Nothing failed, and it was imported at least.
  [[nodiscard]] bool available() const noexcept { return imported.value_or(false) && !failed(); }
};

/// What a dispatcher takes of one rank's memory before anything is allocated.
struct MemoryNeed {
  std::string dispatcher;
  std::string device = {};
  std::int64_t initial_bytes = 0;
  std::int64_t largest_bytes = 0;
  std::string refused = {};       ///< why it cannot serve that configuration; empty where it can
  std::optional<bool> fits = {};  ///< into the GPU, or the host's memory, with the least free
};

}  // namespace epistle::cli
