// epistle::Error becomes epistle.Error, which is a class of Python's (epistle/_errors.py).
#include <nanobind/stl/string.h>

#include "epistle/error.hpp"

#include "bindings.hpp"

namespace epistle::python {
namespace {

nb::object make_error(const Error& error) {
  const Error::Context& context = error.context();
  const auto name = [](std::string_view text) { return nb::str(text.data(), text.size()); };
  return package_attribute("epistle._errors", "from_native")(name(to_string(error.code())), name(error.what()),
                                                             context.rank, context.peer_rank,
                                                             name(to_string(context.phase)), context.missing_rows);
}

}  // namespace

void bind_errors(nb::module_& /*module*/) {
  nb::register_exception_translator([](const std::exception_ptr& thrown, void* /*payload*/) {
    try {
      std::rethrow_exception(thrown);
    } catch (const Error& error) {
      const nb::object instance = make_error(error);
      PyErr_SetObject(instance.type().ptr(), instance.ptr());
    }
  });
}

}  // namespace epistle::python
