// Which options an engine has: to tell a misspelt one from one that a rule does not care for.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "select/check/config.hpp"

namespace epistle::check {

// Names without dashes in front, separated by spaces.
[[nodiscard]] std::string_view megatron_flag_names() noexcept;
[[nodiscard]] std::string_view vllm_flag_names() noexcept;
[[nodiscard]] std::string_view sglang_flag_names() noexcept;

/// True where the engine has that option. With switches, "no-NAME" counts, too.
[[nodiscard]] bool is_known_flag(Engine engine, std::string_view name);

/// Known names that begin with `name`, as argparse lets one shorten them.
[[nodiscard]] std::vector<std::string_view> flags_that_begin_with(Engine engine, std::string_view name);

/// The known name that is closest to `name`; empty where none is close enough to be meant.
[[nodiscard]] std::string_view closest_flag(Engine engine, std::string_view name);

/// The value that is closest to `value`; empty where none is close enough.
[[nodiscard]] std::string_view closest_of(const std::vector<std::string_view>& values, std::string_view value);

}  // namespace epistle::check
