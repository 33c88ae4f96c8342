#include "array.hpp"

#include <utility>

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include "exchange.hpp"

namespace epistle::python {
namespace {

struct TypeRow {
  const char* name;
  std::uint8_t dlpack_code;
  std::int64_t bytes;
  const char* typestr;  ///< of the array interfaces
};

// DLPack 1.1 for fp8; the array interfaces have neither bf16 nor fp8.
constexpr TypeRow kTypes[] = {
    {"bfloat16", static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat), 2, nullptr},
    {"float16", static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float), 2, "<f2"},
    {"float32", static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float), 4, "<f4"},
    {"float8_e4m3fn", 10, 1, nullptr},
    {"uint8", static_cast<std::uint8_t>(nb::dlpack::dtype_code::UInt), 1, "|u1"},
    {"uint16", static_cast<std::uint8_t>(nb::dlpack::dtype_code::UInt), 2, "<u2"},
    {"int32", static_cast<std::uint8_t>(nb::dlpack::dtype_code::Int), 4, "<i4"},
};

const TypeRow& row_of(const Array& array) {
  for (const TypeRow& row : kTypes) {
    if (array.dtype == row.name) return row;
  }
  throw nb::type_error(("no such element type: " + array.dtype).c_str());
}

nb::ndarray<nb::array_api> to_ndarray(const Array& array) {
  const TypeRow& row = row_of(array);
  const nb::dlpack::dtype dtype{row.dlpack_code, static_cast<std::uint8_t>(8 * row.bytes), 1};
  std::vector<std::size_t> sizes(array.shape.begin(), array.shape.end());
  const bool on_cuda = array.place.device == Device::kCuda;
  return nb::ndarray<nb::array_api>(array.data, sizes.size(), sizes.data(), array.owner, array.strides.data(), dtype,
                                    on_cuda ? nb::device::cuda::value : nb::device::cpu::value, array.place.ordinal);
}

nb::object exporter_of(const Array& array) { return nb::cast(to_ndarray(array)); }

nb::tuple dlpack_device(const Array& array) {
  const bool on_cuda = array.place.device == Device::kCuda;
  return nb::make_tuple(on_cuda ? int{nb::device::cuda::value} : int{nb::device::cpu::value}, array.place.ordinal);
}

nb::tuple to_tuple(const std::vector<std::int64_t>& values, std::int64_t factor = 1) {
  nb::list list;
  for (const std::int64_t value : values) list.append(value * factor);
  return nb::tuple(list);
}

nb::dict interface_of(const Array& array, const char* attribute, Device device) {
  const TypeRow& row = row_of(array);
  if (array.place.device != device) {
    throw nb::attribute_error((std::string(attribute) + ": the array lies on the other device").c_str());
  }
  if (row.typestr == nullptr) {
    throw nb::attribute_error(
        (std::string(attribute) + ": it has no " + array.dtype + "; use DLPack, or bits()").c_str());
  }
  nb::dict interface;
  interface["shape"] = to_tuple(array.shape);
  interface["strides"] = to_tuple(array.strides, row.bytes);
  interface["typestr"] = row.typestr;
  interface["data"] = nb::make_tuple(reinterpret_cast<std::uintptr_t>(array.data), false);
  interface["version"] = 3;
  return interface;
}

Array with_type(const Array& array, std::string dtype) {
  Array other = array;
  other.dtype = std::move(dtype);
  return other;
}

/// The same memory as unsigned integers.
Array bits_of(const Array& array) {
  if (array.element_bytes == 1) return with_type(array, "uint8");
  if (array.element_bytes == 2) return with_type(array, "uint16");
  throw nb::type_error(("bits() is for bfloat16, float16 and float8_e4m3fn, not for " + array.dtype).c_str());
}

nb::object call_package(const char* function, const nb::object& self) {
  return package_attribute("epistle._arrays", function)(self);
}

std::string describe(const Array& array) {
  const auto shape = nb::cast<std::string>(nb::repr(to_tuple(array.shape)));
  return "<epistle.Array " + array.dtype + " " + shape + " on " + std::string(to_string(array.place.device)) + ">";
}

}  // namespace

nb::object to_torch(const Array& array) {
  // Not initialised by their declaration: importing Torch may let other threads run, which would wait for it.
  static const dlpack::ExchangeApi* api = nullptr;
  static bool is_known = false;
  if (!is_known) {
    api = exchange_of_type(package_attribute("torch", "Tensor"));
    is_known = true;
  }
  if (api != nullptr) {
    nb::object tensor = make_exchange(*api, array);
    if (tensor.is_valid()) return tensor;
  }
  return call_package("to_torch", nb::cast(array));
}

ElementCode code_of(const Array& array) {
  const TypeRow& row = row_of(array);
  return {.dlpack_code = row.dlpack_code, .bits = static_cast<std::uint8_t>(8 * row.bytes)};
}

Array make_array(const void* data, std::string dtype, ArrayShape shape, Place place, nb::object owner) {
  Array array{.data = const_cast<void*>(data),
              .shape = std::move(shape.sizes),
              .strides = std::move(shape.strides),
              .dtype = std::move(dtype),
              .place = place,
              .owner = std::move(owner)};
  array.element_bytes = row_of(array).bytes;
  if (array.strides.empty()) {
    array.strides.resize(array.shape.size());
    std::int64_t dense = 1;
    for (std::size_t idx = array.shape.size(); idx-- > 0;) {
      array.strides[idx] = dense;
      dense *= array.shape[idx];
    }
  }
  return array;
}

Array make_array(const Rows& rows, Place place, nb::object owner) {
  const char* dtype = "uint8";
  switch (rows.dtype) {
    case DType::kBf16:
      dtype = "bfloat16";
      break;
    case DType::kFp16:
      dtype = "float16";
      break;
    case DType::kFp32:
      dtype = "float32";
      break;
    case DType::kFp8E4m3:
      dtype = "float8_e4m3fn";
      break;
    case DType::kRaw:
      break;
  }
  return make_array(rows.data, dtype,
                    {.sizes = {rows.num_rows, rows.hidden},
                     .strides = {rows.stride != 0 ? rows.stride : rows.hidden, std::int64_t{1}}},
                    place, std::move(owner));
}

Array make_array(const ScalesView& scales, Place place, nb::object owner) {
  const char* dtype = "uint8";
  if (scales.format == ScaleFormat::kFp32) dtype = "float32";
  if (scales.format == ScaleFormat::kUe8m0x4) dtype = "int32";
  const std::int64_t row_stride = scales.row_stride != 0 ? scales.row_stride : scales.num_columns;
  ArrayShape shape{.sizes = {scales.num_rows, scales.num_columns}, .strides = {row_stride, scales.column_stride}};
  if (scales.rows_per_block > 0) {
    shape.sizes.front() = scales.rows_per_block;
    shape.sizes.insert(shape.sizes.begin(), scales.num_rows / scales.rows_per_block);
    shape.strides.insert(shape.strides.begin(), scales.block_stride);
  }
  return make_array(scales.data, dtype, std::move(shape), place, std::move(owner));
}

void bind_array(nb::module_& module) {
  nb::class_<Array>(module, "Array",
                    "Memory of Epistle's as an array. Any library takes it without a copy: ``numpy.asarray(a)``, "
                    "``torch.from_dlpack(a)``, ``jax.dlpack.from_dlpack(a)``, ``cupy.from_dlpack(a)``. What it belongs "
                    "to (a lease, a handle) lives as long as the array, or anything made of it, does.")
      .def_prop_ro(
          "shape", [](const Array& array) { return to_tuple(array.shape); },
          nb::sig("def shape(self) -> tuple[int, ...]"))
      .def_prop_ro(
          "strides", [](const Array& array) { return to_tuple(array.strides); },
          nb::sig("def strides(self) -> tuple[int, ...]"), "In elements.")
      .def_ro("dtype", &Array::dtype, "bfloat16, float16, float32, float8_e4m3fn, uint8, uint16 or int32.")
      .def_prop_ro("data_pointer", [](const Array& array) { return reinterpret_cast<std::uintptr_t>(array.data); })
      .def_prop_ro(
          "device", [](const Array& array) { return std::string(to_string(array.place.device)); }, "host or cuda.")
      .def("__len__", [](const Array& array) { return array.shape.empty() ? 0 : array.shape[0]; })
      .def("__repr__", &describe)
      .def(
          "__dlpack__",
          [](const Array& array, const nb::kwargs& options) {
            return nb::object(exporter_of(array).attr("__dlpack__")(**options));
          },
          nb::sig("def __dlpack__(self, **kwargs: typing.Any) -> typing.Any"))
      .def("__dlpack_device__", &dlpack_device, nb::sig("def __dlpack_device__(self) -> tuple[int, int]"))
      .def_prop_ro(
          "__array_interface__",
          [](const Array& array) { return interface_of(array, "__array_interface__", Device::kHost); },
          nb::sig("def __array_interface__(self) -> dict[str, typing.Any]"))
      .def_prop_ro(
          "__cuda_array_interface__",
          [](const Array& array) { return interface_of(array, "__cuda_array_interface__", Device::kCuda); },
          nb::sig("def __cuda_array_interface__(self) -> dict[str, typing.Any]"))
      .def("bits", &bits_of,
           "The same memory as unsigned integers of the same size: for libraries without bf16 or fp8.")
      .def(
          "numpy", [](const nb::object& self) { return call_package("to_numpy", self); },
          nb::sig("def numpy(self) -> typing.Any"),
          "As a NumPy array, without a copy. bf16 and fp8 need the package ml_dtypes; see bits().")
      .def("torch", &to_torch, nb::sig("def torch(self) -> typing.Any"), "As a tensor of Torch, without a copy.");
}

}  // namespace epistle::python
