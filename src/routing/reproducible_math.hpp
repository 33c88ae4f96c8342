// Elementary functions with the same bits on every machine. The C library's log, exp and pow may differ in the last bit
// between versions; these use only operations that IEEE 754 rounds exactly (+ - * / sqrt) and exact ones (frexp, ldexp,
// floor). They rely on the build's -ffp-contract=off.
#pragma once

#include "routing/philox.hpp"

namespace epistle {

/// Natural logarithm of a positive finite number; relative error below 1e-15.
[[nodiscard]] double reproducible_log(double x) noexcept;

/// e^x for x <= 0; relative error below 1e-14, and 0 where the result would be below 1e-304.
[[nodiscard]] double reproducible_exp_of_nonpositive(double x) noexcept;

/// A standard normal number by Marsaglia's polar method: exact in distribution, and it needs no trigonometry.
[[nodiscard]] double draw_standard_normal(PhiloxStream& random) noexcept;

}  // namespace epistle
