// How a call of a dispatcher is made: what its tensors are read with, on which stream it goes, and without the GIL.
#pragma once

#include <nanobind/nanobind.h>

#include "epistle/error.hpp"
#include "epistle/stream.hpp"

#include "bindings.hpp"
#include "group/caller_complaint.hpp"
#include "tensor.hpp"

namespace epistle::python {

[[nodiscard]] TensorReader reader_of(const PyDispatcher& self);

/// The stream of a call: as given (an integer, or an object of Torch's or CuPy's), or the current one of the library
/// that its tensors belong to; that of the call before where there are none (`reader` is null).
[[nodiscard]] Stream stream_of(PyDispatcher& self, const nb::handle& given, const nb::handle& tensor,
                               const TensorReader* reader);

/// Whether that is the stream of the last call, as far as it can be told without its tensors.
[[nodiscard]] bool is_on_current_stream(const PyDispatcher& self);

/// Makes a call without the GIL. Where an argument is wrong, `spoil` makes the request one that the library refuses, so
/// that the other ranks hear of it as of any bad input; what is thrown, and told there, is the complaint.
template <typename Request, typename Spoil, typename Call>
auto make_call(const TensorReader& reader, Request& request, const Spoil& spoil, const Call& call) {
  const bool is_spoiled = !reader.complaint().empty();
  if (is_spoiled) spoil(request);
  const nb::gil_scoped_release release;
  const CallerComplaint told(reader.complaint());
  try {
    return call();
  } catch (const Error& error) {
    // What another rank is at fault for is not this one's tensor.
    if (!is_spoiled || error.context().peer_rank >= 0) throw;
    throw Error(ErrorCode::kInvalidArgument, reader.complaint(), error.context());
  }
}

}  // namespace epistle::python
