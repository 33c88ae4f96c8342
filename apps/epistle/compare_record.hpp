// The records of `epistle compare`: made from a run, read from files, put beside each other.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "bench_plan.hpp"
#include "core/json_field.hpp"
#include "json_text.hpp"
#include "measure/bench_types.hpp"
#include "measure/significance.hpp"
#include "measure/statistics.hpp"

namespace epistle::cli {

/// One dispatcher of a comparison.
struct Compared {
  std::string name;
  std::string reason;  ///< why there are no times; empty = there are
  std::vector<double> period_us = {};
  Summary summary_us = {};  ///< of these
  std::string dispatcher = {};
  std::size_t record = 0;  ///< which of the records it comes from
  bool in_blocks = false;  ///< a package of others: its rounds are not those of the dispatchers beside it
};

/// The document of a run. What against: `baseline`, or the first that was measured where that is empty.
[[nodiscard]] Json compare_json(const BenchPlan& plan, const BenchResult& result, const std::string& baseline);

/// Writes the comparisons of a run's document anew, from its dispatchers.
void compare_again(Json& document, const std::string& baseline);

/// The dispatchers of a document. Throws kCorruptInput that names what is wrong with it.
[[nodiscard]] std::vector<Compared> read_compared(const JsonField& document);

/// p50 to p99, least and most, and the samples.
[[nodiscard]] Json percentiles_json(const std::vector<double>& samples_us);

struct StoredOptions {
  std::vector<std::string> files;
  std::string baseline;
  bool allow_different_stacks = false;
};

/// A document of the same form from stored ones. Throws kShapeMismatch where their stacks differ, with the differences,
/// unless that is allowed; then nothing is said of significance. Throws kNotFound and kCorruptInput.
[[nodiscard]] Json combine_records(const StoredOptions& options);

/// What differs between two stacks, as sentences: "shape.hidden is 64 in A and 128 in B".
[[nodiscard]] std::vector<std::string> stack_differences(const Json& a, const Json& b, const std::string& name_a,
                                                         const std::string& name_b);

}  // namespace epistle::cli
