// The presets' config.json files, as far as plans read them.
#pragma once

#include <string_view>

namespace epistle {

/// Of a canonical name of epistle models. Throws kNotFound.
[[nodiscard]] std::string_view preset_config(std::string_view name);

}  // namespace epistle
