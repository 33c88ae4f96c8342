// The values of vLLM's --all2all-backend and of SGLang's --moe-a2a-backend by release. A release between those that
// were looked at is given the benefit of the doubt.
#pragma once

#include <optional>
#include <span>
#include <string_view>

#include "select/version.hpp"

namespace epistle {

struct EngineBackend {
  std::string_view name;
  Version since;                      ///< no release before this one had it
  std::optional<Version> until = {};  ///< from this release on it is gone
  std::string_view now = {};          ///< what to say instead from then on
  bool is_alias = false;              ///< newer releases still take the name, and run `now`
  std::string_view source;
  std::string_view date;

  /// What `version` says of it; no version is the newest.
  [[nodiscard]] bool is_too_new(std::optional<Version> version) const { return version && *version < since; }
  [[nodiscard]] bool is_gone(std::optional<Version> version) const { return until && (!version || *version >= *until); }
  [[nodiscard]] bool is_in(std::optional<Version> version) const { return !is_too_new(version) && !is_gone(version); }
};

[[nodiscard]] std::span<const EngineBackend> vllm_backends() noexcept;
[[nodiscard]] std::span<const EngineBackend> sglang_backends() noexcept;

/// Null where none has that name.
[[nodiscard]] const EngineBackend* find_engine_backend(std::span<const EngineBackend> backends,
                                                       std::string_view name) noexcept;

}  // namespace epistle
