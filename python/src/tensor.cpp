#include "tensor.hpp"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <optional>
#include <string>
#include <unordered_map>

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include "epistle/error.hpp"

#include "exchange.hpp"

namespace epistle::python {
namespace {

// How a type of tensors is asked.
enum class Protocol : std::uint8_t { kTorch, kCudaInterface, kArrayInterface, kDlpack, kNone };

Protocol find_protocol(const nb::handle& object) {
  // Torch exports neither fp8 everywhere nor tensors that need gradients; its own methods take every tensor, and half
  // the time.
  if (nb::hasattr(object, "data_ptr") && nb::hasattr(object, "untyped_storage")) return Protocol::kTorch;
  // Asked of an object, not of its type: JAX has it for arrays on a GPU only, so what it says is not kept.
  if (nb::hasattr(object, "__cuda_array_interface__")) return Protocol::kCudaInterface;
  if (nb::hasattr(object, "__array_interface__")) return Protocol::kArrayInterface;
  if (nb::hasattr(object, "__dlpack__")) return Protocol::kDlpack;
  return Protocol::kNone;
}

struct KnownType {
  Protocol protocol = Protocol::kNone;
  const dlpack::ExchangeApi* api = nullptr;  ///< asked first, where there is one
};

/// Types that can be relied on for all their objects, those of Torch and NumPy, are remembered.
KnownType type_of(const nb::handle& object) {
  static std::unordered_map<PyObject*, KnownType> known;  // keeps its types for good; under the GIL
  PyObject* const type = object.type().ptr();
  if (const auto found = known.find(type); found != known.end()) return found->second;
  const KnownType result{.protocol = find_protocol(object), .api = exchange_of_type(object.type())};
  if (result.api != nullptr || result.protocol == Protocol::kTorch || result.protocol == Protocol::kArrayInterface) {
    nb::borrow(type).inc_ref();
    known.emplace(type, result);
  }
  return result;
}

struct NamedType {
  ElementType type;
  std::int64_t bytes;
};

/// By the names that Torch, NumPy and ml_dtypes use.
NamedType type_of_name(std::string_view name, std::int64_t bytes) {
  if (name == "bfloat16") return {ElementType::kBf16, 2};
  if (name == "float16") return {ElementType::kFp16, 2};
  if (name == "float32") return {ElementType::kFp32, 4};
  if (name == "float8_e4m3fn") return {ElementType::kFp8E4m3, 1};
  if (name == "int32") return {ElementType::kInt32, 4};
  if (name == "int64") return {ElementType::kInt64, 8};
  return {ElementType::kOther, bytes};
}

void read_sizes(Tensor& tensor, const nb::handle& shape, const nb::handle& strides) {
  tensor.num_dimensions = nb::len(shape);
  if (tensor.num_dimensions > kMaxDimensions) return;  // refused by whoever asked for fewer
  std::int64_t dense = 1;
  for (std::size_t idx = tensor.num_dimensions; idx-- > 0;) {
    tensor.shape[idx] = nb::cast<std::int64_t>(shape[idx]);
    tensor.strides[idx] = strides.is_none() ? dense : nb::cast<std::int64_t>(strides[idx]);
    dense *= tensor.shape[idx];
  }
}

Tensor read_torch(const nb::handle& object) {
  struct Known {
    NamedType type;
    std::string name;
  };
  static std::unordered_map<PyObject*, Known> known;  // a dtype of Torch is one object, which never goes
  Tensor tensor;
  const nb::object dtype = object.attr("dtype");
  auto found = known.find(dtype.ptr());
  if (found == known.end()) {
    auto name = nb::cast<std::string>(nb::str(dtype));
    if (const auto dot = name.find('.'); dot != std::string::npos) name.erase(0, dot + 1);
    found = known
                .emplace(dtype.inc_ref().ptr(),
                         Known{type_of_name(name, nb::cast<std::int64_t>(object.attr("element_size")())), name})
                .first;
  }
  tensor.type = found->second.type.type;
  tensor.element_bytes = found->second.type.bytes;
  tensor.type_name = found->second.name;
  tensor.data = reinterpret_cast<void*>(nb::cast<std::uintptr_t>(object.attr("data_ptr")()));
  read_sizes(tensor, object.attr("shape"), object.attr("stride")());
  tensor.ordinal = nb::cast<int>(object.attr("get_device")());
  tensor.on_cuda = tensor.ordinal >= 0;
  return tensor;
}

/// Of a type string as "<f4". Objects of Python have no size there.
std::int64_t element_bytes_of(const std::string& type) {
  std::int64_t bytes = 0;
  if (type.size() > 2) std::from_chars(type.data() + 2, type.data() + type.size(), bytes);
  if (bytes <= 0) {
    throw nb::type_error(("its elements are of type '" + type + "'; numbers are expected").c_str());
  }
  return bytes;
}

/// `__array_interface__` and `__cuda_array_interface__`, which differ in where the data lies.
Tensor read_interface(const nb::handle& object, const char* attribute, bool on_cuda) {
  Tensor tensor;
  tensor.keep = nb::object(object.attr(attribute));
  const nb::dict interface = nb::cast<nb::dict>(tensor.keep);
  const auto type = nb::cast<std::string>(interface["typestr"]);  // "<f4", "|V1"
  tensor.element_bytes = element_bytes_of(type);
  // The types of ml_dtypes are void there.
  const bool is_plain = type[1] == 'f' || type[1] == 'i' || type[1] == 'u';
  if (is_plain) {
    tensor.type_name = (type[1] == 'f'   ? "float"
                        : type[1] == 'i' ? "int"
                                         : "uint") +
                       std::to_string(8 * tensor.element_bytes);
  } else if (nb::hasattr(object, "dtype")) {
    const nb::object dtype = object.attr("dtype");
    tensor.type_name = nb::cast<std::string>(nb::str(dtype));
  } else {
    tensor.type_name = type;
  }
  if (type[0] == '>') tensor.type_name += " of the other byte order";
  tensor.type = type_of_name(tensor.type_name, tensor.element_bytes).type;
  const nb::tuple data = nb::cast<nb::tuple>(interface["data"]);
  tensor.data = reinterpret_cast<void*>(nb::cast<std::uintptr_t>(data[0]));
  tensor.read_only = nb::cast<bool>(data[1]);
  read_sizes(tensor, interface["shape"], nb::none());
  const nb::object strides = interface.contains("strides") ? nb::object(interface["strides"]) : nb::none();
  if (!strides.is_none() && tensor.num_dimensions <= kMaxDimensions) {
    for (std::size_t idx = 0; idx < tensor.num_dimensions; ++idx) {
      const auto bytes = nb::cast<std::int64_t>(strides[idx]);
      // Elements that do not lie at multiples of their size give strides that no request accepts.
      tensor.strides[idx] = bytes % tensor.element_bytes == 0 ? bytes / tensor.element_bytes : -1;
    }
  }
  tensor.on_cuda = on_cuda;
  if (on_cuda && nb::hasattr(object, "device")) {
    const nb::object device = object.attr("device");
    if (nb::hasattr(device, "id")) tensor.ordinal = nb::cast<int>(device.attr("id"));
  }
  return tensor;
}

/// As Torch and NumPy would call a type.
std::string name_of(dlpack::DataType type) {
  constexpr std::array<const char*, 7> kFamilies = {"int", "uint", "float", "handle", "bfloat", "complex", "bool"};
  if (type.lanes != 1) return "vectors of " + std::to_string(type.lanes) + " elements";
  if (type.code == dlpack::kFloat8E4m3fn) return "float8_e4m3fn";
  if (type.code >= kFamilies.size()) return "a type of " + std::to_string(type.bits) + " bits";
  return kFamilies[type.code] + std::to_string(type.bits);
}

struct CommonType {
  std::uint8_t code;
  std::uint8_t bits;
  ElementType type;
  const char* name;
};

/// What calls are made with: their names need not be put together in every call.
constexpr CommonType kCommonTypes[] = {{dlpack::kBfloat, 16, ElementType::kBf16, "bfloat16"},
                                       {dlpack::kInt, 64, ElementType::kInt64, "int64"},
                                       {dlpack::kFloat, 32, ElementType::kFp32, "float32"},
                                       {dlpack::kInt, 32, ElementType::kInt32, "int32"},
                                       {dlpack::kFloat8E4m3fn, 8, ElementType::kFp8E4m3, "float8_e4m3fn"}};

void set_type(Tensor& tensor, dlpack::DataType type) {
  tensor.element_bytes = type.bits / 8;
  for (const CommonType& common : kCommonTypes) {
    if (type.lanes != 1 || type.code != common.code || type.bits != common.bits) continue;
    tensor.type = common.type;
    tensor.type_name = common.name;
    return;
  }
  tensor.type_name = name_of(type);
  tensor.type = type_of_name(tensor.type_name, tensor.element_bytes).type;
}

/// None where its library refuses, as Torch does for types that DLPack does not know.
std::optional<Tensor> read_by_exchange(const nb::handle& object, const dlpack::ExchangeApi& api) {
  const std::optional<dlpack::Tensor> view = read_exchange(api, object);
  if (!view) return std::nullopt;
  Tensor tensor;
  tensor.num_dimensions = static_cast<std::size_t>(view->num_dimensions);
  std::int64_t dense = 1;
  for (std::size_t idx = std::min(tensor.num_dimensions, kMaxDimensions); idx-- > 0;) {
    tensor.shape[idx] = view->shape[idx];
    tensor.strides[idx] = view->strides != nullptr ? view->strides[idx] : dense;
    dense *= view->shape[idx];
  }
  set_type(tensor, view->dtype);
  tensor.data = static_cast<std::byte*>(view->data) + view->byte_offset;
  tensor.on_cuda = view->device.type == dlpack::kCuda;
  tensor.ordinal = view->device.id;
  tensor.api = &api;
  return tensor;
}

Tensor read_dlpack(const nb::handle& object) {
  const auto array = nb::cast<nb::ndarray<nb::ro>>(object);
  Tensor tensor;
  tensor.num_dimensions = array.ndim();
  for (std::size_t idx = 0; idx < tensor.num_dimensions && idx < kMaxDimensions; ++idx) {
    tensor.shape[idx] = static_cast<std::int64_t>(array.shape(idx));
    tensor.strides[idx] = array.stride(idx);
  }
  const nb::dlpack::dtype type = array.dtype();
  set_type(tensor, {.code = type.code, .bits = type.bits, .lanes = type.lanes});
  tensor.data = const_cast<void*>(array.data());
  tensor.read_only = true;  // DLPack says so only of late, and a caller's output is never JAX's
  tensor.on_cuda = array.device_type() == nb::device::cuda::value;
  tensor.ordinal = array.device_id();
  tensor.keep = nb::cast(array);
  return tensor;
}

}  // namespace

Tensor read_tensor(const nb::handle& object) {
  const KnownType type = type_of(object);
  if (type.api != nullptr) {
    if (std::optional<Tensor> tensor = read_by_exchange(object, *type.api)) return *std::move(tensor);
  }
  switch (type.protocol) {
    case Protocol::kTorch:
      return read_torch(object);
    case Protocol::kCudaInterface:
      return read_interface(object, "__cuda_array_interface__", true);
    case Protocol::kArrayInterface:
      return read_interface(object, "__array_interface__", false);
    case Protocol::kDlpack:
      return read_dlpack(object);
    case Protocol::kNone:
      break;
  }
  throw nb::type_error("expected a tensor: of Torch, NumPy, JAX or CuPy, or with DLPack");
}

// ---- TensorReader ---------------------------------------------------------------------------------------------------

namespace {

constexpr std::size_t kAnyDimensions = ~std::size_t{0};
constexpr std::size_t kRowsOrBlocks = kAnyDimensions - 1;  ///< 2, or 3 that are 2 in another form

/// Integers of the same size stand for a type that a library has not got: uint16 for bf16, uint8 for fp8.
bool stands_for(const Tensor& tensor, DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return tensor.type == ElementType::kBf16 || tensor.type_name == "uint16";
    case DType::kFp16:
      return tensor.type == ElementType::kFp16;
    case DType::kFp32:
      return tensor.type == ElementType::kFp32;
    case DType::kFp8E4m3:
      return tensor.type == ElementType::kFp8E4m3 || tensor.type_name == "uint8";
    case DType::kRaw:
      return true;
  }
  return false;
}

std::string wrong_type(const Tensor& tensor, std::string_view expected) {
  return "has elements of " + tensor.type_name + "; " + std::string(expected) + " is expected";
}

std::string shape_text(std::int64_t rows, std::int64_t columns) {
  return "[" + std::to_string(rows) + ", " + std::to_string(columns) + "]";
}

/// From one row to the next; a single row has none.
std::int64_t row_stride(const Tensor& tensor) { return tensor.shape[0] > 1 ? tensor.strides[0] : 0; }

/// [blocks, rows, hidden], whose blocks lie one behind the other, as [blocks * rows, hidden]; other shapes as they are.
void flatten_blocks(Tensor& tensor) {
  if (tensor.num_dimensions != 3) return;
  const auto [blocks, rows, hidden, none] = tensor.shape;
  const std::int64_t row_stride = rows == 1 ? tensor.strides[0] : tensor.strides[1];
  if (blocks > 1 && rows > 1 && tensor.strides[0] != rows * row_stride) return;
  tensor.num_dimensions = 2;
  tensor.shape = {blocks * rows, hidden};
  tensor.strides = {row_stride, tensor.strides[2]};
}

}  // namespace

bool TensorReader::complain(std::string_view name, const std::string& text) {
  refuse(std::string(name) + " " + text);
  return false;
}

bool TensorReader::read(std::string_view name, const nb::handle& object, std::size_t num_dimensions, Tensor& tensor) {
  try {
    tensor = read_tensor(object);
  } catch (const std::exception& error) {
    return complain(name, std::string("cannot be read: ") + error.what());
  }
  if (tensor.on_cuda && library_ == nullptr) library_ = tensor.api;
  if (tensor.keep.is_valid()) keep_[num_kept_++ % keep_.size()] = tensor.keep;
  if (num_dimensions == kRowsOrBlocks) {
    flatten_blocks(tensor);
    num_dimensions = 2;
  }
  const bool any = num_dimensions == kAnyDimensions && tensor.num_dimensions <= kMaxDimensions;
  if (!any && tensor.num_dimensions != num_dimensions) {
    return complain(name, "has " + std::to_string(tensor.num_dimensions) + " dimensions; 2 are expected");
  }
  const bool is_empty = tensor.data == nullptr;
  if (!is_empty && tensor.on_cuda != place_.on_cuda) {
    return complain(name, std::string("lies ") + (tensor.on_cuda ? "on a GPU" : "on the host") +
                              "; the dispatcher's memory is " + (place_.on_cuda ? "that of a GPU" : "the host's"));
  }
  if (!is_empty && tensor.on_cuda && tensor.ordinal != place_.ordinal) {
    return complain(name, "lies on GPU " + std::to_string(tensor.ordinal) + "; the dispatcher uses GPU " +
                              std::to_string(place_.ordinal));
  }
  return true;
}

bool TensorReader::read_table(std::string_view name, const nb::handle& object, Tensor& tensor,
                              std::size_t num_dimensions) {
  if (!read(name, object, num_dimensions, tensor)) return false;
  if (tensor.shape[1] <= 1 || tensor.shape[0] == 0 || tensor.strides[1] == 1) return true;
  return complain(name, "has rows whose elements do not lie one behind the other; make it contiguous");
}

bool TensorReader::check_writable(std::string_view name, const Tensor& tensor) {
  return !tensor.read_only || complain(name, "cannot be written to");
}

Rows TensorReader::read_rows(std::string_view name, const nb::handle& object, DType dtype, bool writable) {
  Tensor tensor;
  if (object.is_none() || !read_table(name, object, tensor, kRowsOrBlocks)) return {};
  if (writable && !check_writable(name, tensor)) return {};
  if (!stands_for(tensor, dtype)) {
    static_cast<void>(complain(name, wrong_type(tensor, to_string(dtype))));
    return {};
  }
  const std::int64_t scale = dtype == DType::kRaw ? tensor.element_bytes : 1;
  return {.data = tensor.data,
          .num_rows = tensor.shape[0],
          .hidden = tensor.shape[1] * scale,
          .dtype = dtype,
          .stride = row_stride(tensor) * scale};
}

ConstRows TensorReader::rows(std::string_view name, const nb::handle& object, DType dtype) {
  return read_rows(name, object, dtype, false);
}

Rows TensorReader::writable_rows(std::string_view name, const nb::handle& object, DType dtype) {
  return read_rows(name, object, dtype, true);
}

ScalesView TensorReader::scales(std::string_view name, const nb::handle& object, DType payload) {
  Tensor tensor;
  if (object.is_none() || !read(name, object, 2, tensor)) return {};
  ScalesView view{.data = tensor.data,
                  .num_rows = tensor.shape[0],
                  .num_columns = tensor.shape[1],
                  .format = ScaleFormat::kFp32,
                  .row_stride = row_stride(tensor),
                  .column_stride = tensor.shape[1] > 1 ? tensor.strides[1] : 1};
  if (payload == DType::kRaw) {
    if (view.column_stride != 1) {
      static_cast<void>(complain(name, "of raw rows must lie one behind the other; make them contiguous"));
      return {};
    }
    view.format = ScaleFormat::kBytes;
    view.num_columns *= tensor.element_bytes;
    view.row_stride *= tensor.element_bytes;
    return view;
  }
  if (tensor.type == ElementType::kFp32) return view;
  static_cast<void>(complain(name, wrong_type(tensor, "fp32")));
  return {};
}

IdsView TensorReader::ids(std::string_view name, const nb::handle& object) {
  Tensor tensor;
  if (object.is_none() || !read_table(name, object, tensor)) return {};
  const auto top_k = static_cast<std::int32_t>(tensor.shape[1]);
  if (tensor.type == ElementType::kInt32) {
    return {static_cast<const std::int32_t*>(tensor.data), tensor.shape[0], top_k, row_stride(tensor)};
  }
  if (tensor.type == ElementType::kInt64) {
    return {static_cast<const std::int64_t*>(tensor.data), tensor.shape[0], top_k, row_stride(tensor)};
  }
  static_cast<void>(complain(name, wrong_type(tensor, "int32 or int64")));
  return {};
}

WeightsView TensorReader::weights(std::string_view name, const nb::handle& object, std::int64_t num_tokens,
                                  std::int64_t top_k) {
  Tensor tensor;
  if (object.is_none() || !read_table(name, object, tensor)) return {};
  if (tensor.type != ElementType::kFp32) {
    static_cast<void>(complain(name, wrong_type(tensor, "fp32")));
    return {};
  }
  if (tensor.shape[0] != num_tokens || tensor.shape[1] != top_k) {
    static_cast<void>(complain(name, "is " + shape_text(tensor.shape[0], tensor.shape[1]) + "; " +
                                         shape_text(num_tokens, top_k) + " is expected, as the ids are"));
    return {};
  }
  return {static_cast<const float*>(tensor.data), row_stride(tensor)};
}

float* TensorReader::floats(std::string_view name, const nb::handle& object, std::int64_t num_elements, bool writable) {
  Tensor tensor;
  if (object.is_none() || !read(name, object, kAnyDimensions, tensor)) return nullptr;
  if (writable && !check_writable(name, tensor)) return nullptr;
  std::int64_t size = 1;
  bool dense = true;
  for (std::size_t idx = tensor.num_dimensions; idx-- > 0;) {
    dense = dense && (tensor.shape[idx] <= 1 || tensor.strides[idx] == size);
    size *= tensor.shape[idx];
  }
  if (tensor.type == ElementType::kFp32 && size == num_elements && (dense || size == 0)) {
    return static_cast<float*>(tensor.data);
  }
  static_cast<void>(complain(name, "must be contiguous, of fp32, with " + std::to_string(num_elements) +
                                       " elements; it has " + std::to_string(size) + " of " + tensor.type_name));
  return nullptr;
}

const std::int32_t* TensorReader::token_count(std::string_view name, const nb::handle& object) {
  Tensor tensor;
  if (object.is_none() || !read(name, object, kAnyDimensions, tensor)) return nullptr;
  if (tensor.type == ElementType::kInt32 && tensor.data != nullptr) return static_cast<std::int32_t*>(tensor.data);
  static_cast<void>(complain(name, wrong_type(tensor, "one int32")));
  return nullptr;
}

const std::uint64_t* TensorReader::step_seed(std::string_view name, const nb::handle& object) {
  Tensor tensor;
  if (object.is_none() || !read(name, object, kAnyDimensions, tensor)) return nullptr;
  const bool is_word = tensor.type == ElementType::kInt64 || tensor.type_name == "uint64";
  if (is_word && tensor.data != nullptr) return static_cast<std::uint64_t*>(tensor.data);
  static_cast<void>(complain(name, wrong_type(tensor, "one uint64 or int64")));
  return nullptr;
}

}  // namespace epistle::python
