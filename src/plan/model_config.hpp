// A model for plans, from a Hugging Face config.json.
#pragma once

#include <string>
#include <string_view>

#include "plan/plan_model.hpp"

namespace epistle {

/// `file` is named in errors, which are kCorruptInput and name the field.
[[nodiscard]] PlanModel parse_plan_model(std::string_view text, const std::string& file);

}  // namespace epistle
