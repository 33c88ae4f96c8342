// Expert loads from files: JSON, CSV and NumPy's .npy.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace epistle::balance {

/// What a load file holds. JSON may name the cluster and the current placement; the other formats have only loads.
struct LoadFile {
  std::vector<std::vector<double>> loads;          ///< [num_layers][num_experts]
  std::optional<std::vector<std::int32_t>> slots;  ///< one number: of all ranks together; else of every rank
  std::optional<std::int32_t> num_ranks;
  std::optional<std::vector<std::int32_t>> domains;  ///< one number: how many; else that of every rank
  std::vector<std::vector<std::int32_t>> current;    ///< [num_layers][num_slots], ranks in order; empty = none
};

/// By the ending of `path`: .csv (a row for every layer, with or without a line of names), .npy (one or two axes; of
/// three, windows by layers by experts, the windows are added up), .json; other names, "-" for standard input among
/// them, by what is in it. JSON is
///   {"loads": [[...], ...], "slots": N or [...], "ranks": N, "domains": N or [...], "current": [[...], ...]}
/// where only loads must be there, and one layer may stand without the outer list.
/// Throws kNotFound or kCorruptInput, which say where.
[[nodiscard]] LoadFile read_load_file(const std::string& path);

}  // namespace epistle::balance
