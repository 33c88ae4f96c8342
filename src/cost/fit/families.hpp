// The families of curves that can be calibrated, with what is known before any measurement.
#pragma once

#include <span>
#include <string_view>

#include "cost/fit/calibrated_curve.hpp"

namespace epistle {

[[nodiscard]] std::span<const CurveFamily> curve_families();

/// Throws kNotFound.
[[nodiscard]] const CurveFamily& find_curve_family(std::string_view name);

/// The last quantity of a place in the field of an exchange: whether it leaves a domain. What is left over of messages
/// through the network says little of calls inside a domain.
[[nodiscard]] double crossing_position(const ExchangeWork& work) noexcept;

[[nodiscard]] ExchangeTerms exchange_terms(std::span<const double> constants) noexcept;
[[nodiscard]] GemmTerms gemm_terms(std::span<const double> constants) noexcept;

}  // namespace epistle
