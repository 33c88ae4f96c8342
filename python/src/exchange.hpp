// DLPack's table of functions for exchange in C (DLPack 1.2): one call reads a tensor, another one tells the current
// stream, a third makes a tensor, and none goes through Python objects. Torch has it since 2.10; what has it not is
// asked by its attributes.
#pragma once

#include <cstdint>
#include <optional>

#include <nanobind/nanobind.h>

#include "array.hpp"

namespace epistle::python {

namespace nb = nanobind;

namespace dlpack {

// As dlpack.h has them: they are the interface between libraries.
struct Device {
  std::int32_t type;
  std::int32_t id;
};
struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  std::int32_t num_dimensions;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};
struct ManagedTensor {
  Version version;
  void* context;
  void (*deleter)(ManagedTensor*);
  std::uint64_t flags;
  Tensor tensor;
};
struct ExchangeApi {
  Version version;
  const ExchangeApi* previous;
  void* allocate;
  int (*own)(void* object, ManagedTensor** out);
  int (*make)(ManagedTensor* tensor, void** out);  ///< takes the tensor
  int (*read)(void* object, Tensor* out);          ///< may be null
  int (*current_stream)(std::int32_t device_type, std::int32_t device_id, void** out);
};

inline constexpr std::int32_t kCpu = 1;
inline constexpr std::int32_t kCuda = 2;
inline constexpr std::uint8_t kInt = 0;
inline constexpr std::uint8_t kFloat = 2;
inline constexpr std::uint8_t kBfloat = 4;
inline constexpr std::uint8_t kFloat8E4m3fn = 10;  // DLPack 1.1

}  // namespace dlpack

/// The table of a type; null where it has none that can be used.
[[nodiscard]] const dlpack::ExchangeApi* exchange_of_type(const nb::handle& type);

/// What the object is, as long as it lives. None where its library cannot say, as of types that DLPack does not know.
[[nodiscard]] std::optional<dlpack::Tensor> read_exchange(const dlpack::ExchangeApi& api, const nb::handle& object);

/// The stream that its library would use now on this GPU.
[[nodiscard]] void* current_stream(const dlpack::ExchangeApi& api, int ordinal);

/// The array as a tensor of that library, on the same memory. Null where the library does not take it.
[[nodiscard]] nb::object make_exchange(const dlpack::ExchangeApi& api, const Array& array);

}  // namespace epistle::python
