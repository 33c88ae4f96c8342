#include "calls.hpp"

#include <cstdint>

#include "exchange.hpp"

namespace epistle::python {
namespace {

Stream current_stream_of(const PyDispatcher& self) {
  return static_cast<CUstream_st*>(current_stream(*self.library, self.dispatcher.device_ordinal()));
}

Stream resolved_stream(const PyDispatcher& self, const nb::handle& given, const nb::handle& tensor) {
  const nb::object found =
      package_attribute("epistle._streams", "resolve")(given, tensor, self.dispatcher.device_ordinal());
  return reinterpret_cast<CUstream_st*>(nb::cast<std::uintptr_t>(found));
}

}  // namespace

TensorReader reader_of(const PyDispatcher& self) {
  return TensorReader({.on_cuda = self.on_cuda(), .ordinal = self.on_cuda() ? self.dispatcher.device_ordinal() : 0});
}

Stream stream_of(PyDispatcher& self, const nb::handle& given, const nb::handle& tensor, const TensorReader* reader) {
  if (!self.on_cuda() && given.is_none()) return {};
  if (reader != nullptr) self.library = reader->library();
  const bool is_current = given.is_none() && self.library != nullptr;
  self.stream = is_current ? current_stream_of(self) : resolved_stream(self, given, tensor);
  return self.stream;
}

bool is_on_current_stream(const PyDispatcher& self) {
  if (!self.on_cuda()) return true;
  return self.library != nullptr && current_stream_of(self).get() == self.stream.get();
}

}  // namespace epistle::python
