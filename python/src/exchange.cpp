#include "exchange.hpp"

#include <memory>

#include "epistle/error.hpp"

namespace epistle::python {
namespace {

constexpr std::uint32_t kMajor = 1;
constexpr std::uint32_t kMinor = 2;

/// An array that another library holds: sizes and owner live until it lets go, on any thread, with the GIL or without.
struct Export {
  dlpack::ManagedTensor managed;
  Array array;
};

void let_go(dlpack::ManagedTensor* managed) {
  if (!nb::is_alive()) return;  // the interpreter has ended, and its objects with it
  const nb::gil_scoped_acquire acquire;
  delete static_cast<Export*>(managed->context);
}

}  // namespace

const dlpack::ExchangeApi* exchange_of_type(const nb::handle& type) {
  const nb::object capsule = nb::getattr(type, "__dlpack_c_exchange_api__", nb::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  const auto* api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (api != nullptr && api->version.major > kMajor) api = api->previous;
  if (api == nullptr || api->version.major != kMajor || api->read == nullptr) return nullptr;
  return api;
}

std::optional<dlpack::Tensor> read_exchange(const dlpack::ExchangeApi& api, const nb::handle& object) {
  dlpack::Tensor tensor = {};
  if (api.read(object.ptr(), &tensor) == 0) return tensor;
  PyErr_Clear();
  return std::nullopt;
}

void* current_stream(const dlpack::ExchangeApi& api, int ordinal) {
  void* stream = nullptr;
  if (api.current_stream(dlpack::kCuda, ordinal, &stream) != 0) throw nb::python_error();
  return stream;
}

nb::object make_exchange(const dlpack::ExchangeApi& api, const Array& array) {
  auto made = std::make_unique<Export>(Export{.managed = {}, .array = array});
  const ElementCode code = code_of(array);
  const bool on_cuda = array.place.device == Device::kCuda;
  made->managed = {.version = {.major = kMajor, .minor = kMinor},
                   .context = made.get(),
                   .deleter = &let_go,
                   .flags = 0,
                   .tensor = {.data = made->array.data,
                              .device = {.type = on_cuda ? dlpack::kCuda : dlpack::kCpu, .id = array.place.ordinal},
                              .num_dimensions = static_cast<std::int32_t>(made->array.shape.size()),
                              .dtype = {.code = code.dlpack_code, .bits = code.bits, .lanes = 1},
                              .shape = made->array.shape.data(),
                              .strides = made->array.strides.data(),
                              .byte_offset = 0}};
  void* object = nullptr;
  if (api.make(&made->managed, &object) != 0) {
    PyErr_Clear();
    return {};
  }
  static_cast<void>(made.release());  // let_go has it now
  return nb::steal(static_cast<PyObject*>(object));
}

}  // namespace epistle::python
