// What to paste for a candidate: flags by engine, environment, SM counts, mode.
#pragma once

#include <string_view>

#include "select/select.hpp"

namespace epistle {

[[nodiscard]] std::string_view candidate_mode(std::string_view backend, const SelectFacts& facts);

/// Sets all that follows from the backend's name and the facts.
void describe_candidate(SelectCandidate& candidate, const SelectFacts& facts);

}  // namespace epistle
