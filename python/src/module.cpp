// The extension module epistle._core.
#include "bindings.hpp"

namespace epistle::python {

nb::object package_attribute(const char* module, const char* name) { return nb::module_::import_(module).attr(name); }

}  // namespace epistle::python

NB_MODULE(_core, module) {
  using namespace epistle::python;
  // An exception that ends the interpreter keeps its frames, and so their dispatchers, alive: no mistake of a binding.
  nanobind::set_leak_warnings(false);
  bind_errors(module);
  bind_array(module);
  bind_balance(module);
  bind_group(module);
  bind_info(module);
  bind_received(module);
  bind_dispatcher(module);
  bind_load_window(module);
  bind_weight_store(module);
}
