// The scales of the rows that one rank receives, wherever in its memory they lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "layout/scale_places.hpp"

namespace epistle::host {

class ReceivedScales {
 public:
  ReceivedScales(std::byte* scales, const ScalePlaces& places) noexcept : scales_(scales), places_(places) {}

  /// `source`: those of one row, one behind the other.
  void put(std::int64_t row, const std::byte* source) const noexcept {
    if (!places_.in_columns()) {
      std::memcpy(at(row, 0), source, static_cast<std::size_t>(places_.row_bytes()));
      return;
    }
    for (std::int64_t word = 0; word < places_.num_words(); ++word) {
      std::memcpy(at(row, word), source + word * ScalePlaces::kWordBytes, ScalePlaces::kWordBytes);
    }
  }
  /// Those of row `from` to row `to`.
  void copy(std::int64_t from, std::int64_t to) const noexcept {
    if (!places_.in_columns()) return put(to, at(from, 0));
    for (std::int64_t word = 0; word < places_.num_words(); ++word) {
      std::memcpy(at(to, word), at(from, word), ScalePlaces::kWordBytes);
    }
  }
  /// Of rows [begin, end).
  void zero(std::int64_t begin, std::int64_t end) const noexcept {
    if (begin >= end) return;
    if (!places_.in_columns()) {
      std::memset(at(begin, 0), 0, static_cast<std::size_t>((end - begin) * places_.row_bytes()));
      return;
    }
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t word = 0; word < places_.num_words(); ++word) {
        std::memset(at(row, word), 0, ScalePlaces::kWordBytes);
      }
    }
  }

 private:
  [[nodiscard]] std::byte* at(std::int64_t row, std::int64_t word) const noexcept {
    return scales_ + places_.offset(row, word);
  }

  std::byte* scales_;
  ScalePlaces places_;
};

}  // namespace epistle::host
