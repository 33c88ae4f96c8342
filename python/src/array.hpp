// Memory of the library's, shown to Python: an object with DLPack and the array interfaces, which keeps its owner
// alive.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nanobind/nanobind.h>

#include "epistle/views.hpp"

#include "bindings.hpp"

namespace epistle::python {

struct Array {
  void* data = nullptr;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;  ///< in elements
  std::string dtype;                  ///< as NumPy or ml_dtypes calls it
  std::int64_t element_bytes = 0;
  Place place;
  nb::object owner;
};

struct ArrayShape {
  std::vector<std::int64_t> sizes;
  std::vector<std::int64_t> strides = {};  ///< empty: one behind the other
};

/// Of the elements, as DLPack has them.
struct ElementCode {
  std::uint8_t dlpack_code;
  std::uint8_t bits;
};
[[nodiscard]] ElementCode code_of(const Array& array);

[[nodiscard]] Array make_array(const void* data, std::string dtype, ArrayShape shape, Place place, nb::object owner);
/// Of a request for rows: [num_rows, hidden].
[[nodiscard]] Array make_array(const Rows& rows, Place place, nb::object owner);
/// [num_rows, num_columns]; in blocks [num_blocks, rows_per_block, num_columns].
[[nodiscard]] Array make_array(const ScalesView& scales, Place place, nb::object owner);

/// As a tensor of Torch, on the same memory. Where its type has no table of functions yet (exchange.hpp), or does not
/// take the array, by a capsule.
[[nodiscard]] nb::object to_torch(const Array& array);

}  // namespace epistle::python
