// The dispatcher: the GIL is released in every call that may wait, and everything that a call uses lives until it
// returns.
#include <optional>
#include <utility>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.hpp"
#include "calls.hpp"

namespace epistle::python {
namespace {

PyDispatcher& get(const nb::object& self) { return nb::cast<PyDispatcher&>(self); }

constexpr std::int64_t kRefused = -1;  // a number of rows that no call accepts

void spoil_ids(IdsView& ids) {
  ids.num_tokens = kRefused;
  ids.top_k = 1;
}

Handle handle_in(TensorReader& reader, const nb::handle& handle) {
  if (handle.is_none()) return {};
  if (nb::isinstance<PyHandle>(handle)) return nb::cast<const PyHandle&>(handle).handle;
  reader.refuse("handle is no Handle; give what prepare returned");
  return {};
}

struct RoutingArguments {
  nb::handle expert_ids, weights, num_tokens;
  std::int64_t most_tokens;
  std::uint64_t step_seed;
  nb::handle step_seed_at;
};

template <typename Request>
void read_routing(TensorReader& reader, const RoutingArguments& given, Request& request) {
  request.expert_ids = reader.ids("expert_ids", given.expert_ids);
  request.weights = reader.weights("weights", given.weights, request.expert_ids.num_tokens, request.expert_ids.top_k);
  request.num_tokens = reader.token_count("num_tokens", given.num_tokens);
  request.most_tokens = given.most_tokens;
  request.step_seed = given.step_seed;
  request.step_seed_at = reader.step_seed("step_seed_at", given.step_seed_at);
}

PyHandle prepare(const nb::object& self, const nb::object& expert_ids, const nb::object& weights,
                 const nb::object& num_tokens, std::int64_t most_tokens, std::uint64_t step_seed,
                 const nb::object& step_seed_at, int num_sms, const nb::object& stream) {
  PyDispatcher& dispatcher = get(self);
  TensorReader reader = reader_of(dispatcher);
  PrepareRequest request{.num_sms = num_sms};
  if (expert_ids.is_none()) reader.refuse("expert_ids is None; a tensor [num_tokens, top_k] is expected");
  read_routing(reader, {expert_ids, weights, num_tokens, most_tokens, step_seed, step_seed_at}, request);
  const Stream on = stream_of(dispatcher, stream, expert_ids, &reader);
  return {self, make_call(
                    reader, request, [](PrepareRequest& bad) { spoil_ids(bad.expert_ids); },
                    [&] { return dispatcher.dispatcher.prepare(request, on); })};
}

struct DispatchArguments {
  nb::object tokens, handle, expert_ids, weights, num_tokens, scales;
  std::int64_t most_tokens;
  std::uint64_t step_seed;
  nb::object step_seed_at;
  int num_sms;
  nb::object stream;
};

template <typename Call>
auto with_dispatch_request(const nb::object& self, const DispatchArguments& given, const Call& call) {
  PyDispatcher& dispatcher = get(self);
  TensorReader reader = reader_of(dispatcher);
  const DType input = dispatcher.dispatcher.config().input;
  DispatchRequest request{.handle = handle_in(reader, given.handle), .num_sms = given.num_sms};
  if (!given.expert_ids.is_none()) {
    if (request.handle.valid()) reader.refuse("dispatch takes a handle or expert_ids, not both");
    read_routing(
        reader,
        {given.expert_ids, given.weights, given.num_tokens, given.most_tokens, given.step_seed, given.step_seed_at},
        request);
  }
  request.tokens = reader.rows("tokens", given.tokens, input);
  request.scales = reader.scales("scales", given.scales, input);
  const Stream on = stream_of(dispatcher, given.stream, given.tokens, &reader);
  return make_call(
      reader, request,
      [](DispatchRequest& bad) {
        if (bad.handle.valid()) {
          bad.tokens.num_rows = kRefused;
        } else {
          spoil_ids(bad.expert_ids);
        }
      },
      [&] { return call(dispatcher.dispatcher, request, on); });
}

PyReceived dispatch(const nb::object& self, const nb::object& tokens, const nb::object& handle,
                    const nb::object& expert_ids, const nb::object& weights, const nb::object& num_tokens,
                    const nb::object& scales, std::int64_t most_tokens, std::uint64_t step_seed,
                    const nb::object& step_seed_at, int num_sms, const nb::object& stream) {
  return {self, with_dispatch_request(self,
                                      {tokens, handle, expert_ids, weights, num_tokens, scales, most_tokens, step_seed,
                                       step_seed_at, num_sms, stream},
                                      [](Dispatcher& dispatcher, const DispatchRequest& request, Stream on) {
                                        return dispatcher.dispatch(request, on);
                                      })};
}

PyPending dispatch_send(const nb::object& self, const nb::object& tokens, const nb::object& handle,
                        const nb::object& expert_ids, const nb::object& weights, const nb::object& num_tokens,
                        const nb::object& scales, std::int64_t most_tokens, std::uint64_t step_seed,
                        const nb::object& step_seed_at, int num_sms, const nb::object& stream) {
  return {self, with_dispatch_request(self,
                                      {tokens, handle, expert_ids, weights, num_tokens, scales, most_tokens, step_seed,
                                       step_seed_at, num_sms, stream},
                                      [](Dispatcher& dispatcher, const DispatchRequest& request, Stream on) {
                                        return dispatcher.dispatch_send(request, on);
                                      })};
}

/// What a step of decoding needs of a dispatch, in one call: that is what its host time is made of.
nb::tuple dispatch_decode(const nb::object& self, const nb::object& tokens, const nb::object& expert_ids,
                          const nb::object& stream) {
  const nb::object none = nb::none();
  Received received = with_dispatch_request(self, {tokens, none, expert_ids, none, none, none, 0, 0, none, 0, stream},
                                            [](Dispatcher& dispatcher, const DispatchRequest& request, Stream on) {
                                              return dispatcher.dispatch(request, on);
                                            });
  const nb::object handle = nb::cast(PyHandle{self, received.handle()});
  received.release();
  return nb::make_tuple(handle, counts_tensor(handle));
}

/// What a dispatch of many tokens needs, in one call as well: all that is made behind the launch is made while a GPU is
/// busy with it.
nb::tuple dispatch_routed(const nb::object& self, const nb::object& tokens, const nb::object& expert_ids,
                          const nb::object& weights, const nb::object& scales, int num_sms, const nb::object& stream) {
  const nb::object none = nb::none();
  Received received =
      with_dispatch_request(self, {tokens, none, expert_ids, weights, none, scales, 0, 0, none, num_sms, stream},
                            [](Dispatcher& dispatcher, const DispatchRequest& request, Stream on) {
                              return dispatcher.dispatch(request, on);
                            });
  const nb::object handle = nb::cast(PyHandle{self, received.handle()});
  const nb::object lease = nb::cast(PyReceived{self, std::move(received)});
  return nb::make_tuple(lease, handle, row_tensors(lease), routing_tensors(handle));
}

/// The object that is given last, where it is one of `self`'s.
Pending take(const nb::object& pending) { return std::move(nb::cast<PyPending&>(pending).pending); }

PyReceived dispatch_receive(const nb::object& self, const nb::object& pending, const nb::object& stream) {
  PyDispatcher& dispatcher = get(self);
  const Stream on = stream_of(dispatcher, stream, nb::none(), nullptr);
  Pending open = take(pending);
  const nb::gil_scoped_release release;
  Received received = dispatcher.dispatcher.dispatch_receive(std::move(open), on);
  const nb::gil_scoped_acquire acquire;
  return {self, std::move(received)};
}

struct CombineArguments {
  nb::object rows, handle, received, weights, out;
  int num_sms;
  nb::object stream;
};

template <typename Call>
auto with_combine_request(const nb::object& self, const CombineArguments& given, const Call& call) {
  PyDispatcher& dispatcher = get(self);
  TensorReader reader = reader_of(dispatcher);
  const DispatcherConfig& config = dispatcher.dispatcher.config();
  const DType output = config.expert_output.value_or(
      config.input == DType::kFp8E4m3 || config.input == DType::kRaw ? DType::kBf16 : config.input);
  CombineRequest request{.handle = handle_in(reader, given.handle), .num_sms = given.num_sms};
  if (nb::isinstance<PyReceived>(given.received)) {
    request.received = nb::cast<const PyReceived&>(given.received).received;
  } else if (!given.received.is_none()) {
    reader.refuse("received is no Received; give what dispatch returned");
  }
  request.rows = reader.rows("rows", given.rows, output);
  request.out = reader.writable_rows("out", given.out, output);
  request.weights = reader.weights("weights", given.weights, request.out.num_rows, config.top_k);
  const Stream on = stream_of(dispatcher, given.stream, given.out, &reader);
  return make_call(
      reader, request,
      [](CombineRequest& bad) {
        bad.rows.num_rows = kRefused;
        bad.rows.data = &bad;  // so that the rows of `received` do not take their place
      },
      [&] { return call(dispatcher.dispatcher, request, on); });
}

void combine(const nb::object& self, const nb::object& out, const nb::object& rows, const nb::object& handle,
             const nb::object& received, const nb::object& weights, int num_sms, const nb::object& stream) {
  with_combine_request(
      self, {rows, handle, received, weights, out, num_sms, stream},
      [](Dispatcher& dispatcher, const CombineRequest& request, Stream on) { dispatcher.combine(request, on); });
}

PyPending combine_send(const nb::object& self, const nb::object& out, const nb::object& rows, const nb::object& handle,
                       const nb::object& received, const nb::object& weights, int num_sms, const nb::object& stream) {
  return {self, with_combine_request(self, {rows, handle, received, weights, out, num_sms, stream},
                                     [](Dispatcher& dispatcher, const CombineRequest& request, Stream on) {
                                       return dispatcher.combine_send(request, on);
                                     })};
}

void combine_receive(const nb::object& self, const nb::object& pending, const nb::object& stream) {
  PyDispatcher& dispatcher = get(self);
  const Stream on = stream_of(dispatcher, stream, nb::none(), nullptr);
  Pending open = take(pending);
  const nb::gil_scoped_release release;
  dispatcher.dispatcher.combine_receive(std::move(open), on);
}

DType gradient_type(const PyDispatcher& dispatcher) {
  const DispatcherConfig& config = dispatcher.dispatcher.config();
  const bool summed = config.input != DType::kFp8E4m3 && config.input != DType::kRaw;
  return config.expert_output.value_or(summed ? config.input : DType::kBf16);
}

/// Elements of RowDescription::weights.
std::int64_t num_row_weights(const PyDispatcher& dispatcher, const Handle& handle) {
  if (!handle.valid()) return 0;
  const RowDescription& rows = handle.description();
  const bool token_major = std::holds_alternative<TokenMajor>(dispatcher.dispatcher.config().layout);
  return rows.num_rows * (token_major ? dispatcher.dispatcher.config().top_k : 1);
}

void dispatch_backward(const nb::object& self, const nb::object& handle, const nb::object& grad_rows,
                       const nb::object& grad_tokens, const nb::object& grad_weights, const nb::object& grad_probs,
                       int num_sms, const nb::object& stream) {
  PyDispatcher& dispatcher = get(self);
  TensorReader reader = reader_of(dispatcher);
  const DType type = gradient_type(dispatcher);
  DispatchBackwardRequest request{.handle = handle_in(reader, handle), .num_sms = num_sms};
  request.grad_rows = reader.rows("grad_rows", grad_rows, type);
  request.grad_tokens = reader.writable_rows("grad_tokens", grad_tokens, type);
  request.grad_weights =
      reader.floats("grad_weights", grad_weights, num_row_weights(dispatcher, request.handle), false);
  request.grad_probs = reader.floats("grad_probs", grad_probs,
                                     request.grad_tokens.num_rows * dispatcher.dispatcher.config().top_k, true);
  const Stream on = stream_of(dispatcher, stream, grad_tokens, &reader);
  make_call(
      reader, request, [](DispatchBackwardRequest& bad) { bad.grad_rows.num_rows = kRefused; },
      [&] { dispatcher.dispatcher.dispatch_backward(request, on); });
}

PyReceived combine_backward(const nb::object& self, const nb::object& handle, const nb::object& grad_out,
                            const nb::object& saved_rows, const nb::object& grad_weights, int num_sms,
                            const nb::object& stream) {
  PyDispatcher& dispatcher = get(self);
  TensorReader reader = reader_of(dispatcher);
  const DType type = gradient_type(dispatcher);
  CombineBackwardRequest request{.handle = handle_in(reader, handle), .num_sms = num_sms};
  request.grad_out = reader.rows("grad_out", grad_out, type);
  request.saved_rows = reader.rows("saved_rows", saved_rows, type);
  request.grad_weights = reader.floats("grad_weights", grad_weights, num_row_weights(dispatcher, request.handle), true);
  const Stream on = stream_of(dispatcher, stream, grad_out, &reader);
  return {self, make_call(
                    reader, request, [](CombineBackwardRequest& bad) { bad.grad_out.num_rows = kRefused; },
                    [&] { return dispatcher.dispatcher.combine_backward(request, on); })};
}

void set_placement(const nb::object& self, const nb::object& placement, const nb::object& stream) {
  PyDispatcher& dispatcher = get(self);
  const Placement next = read_placement(placement);
  const Stream on = stream_of(dispatcher, stream, nb::none(), nullptr);
  const nb::gil_scoped_release release;
  dispatcher.dispatcher.set_placement(next, on);
}

const char* health_name(Health health) {
  switch (health) {
    case Health::kOk:
      return "ok";
    case Health::kPeerLost:
      return "peer_lost";
    case Health::kTimeout:
      return "timeout";
    case Health::kAborted:
      return "aborted";
    case Health::kBroken:
      return "broken";
  }
  return "broken";
}

void create(PyDispatcher* self, const nb::object& group, const std::string& name, const nb::object& config,
            const nb::object& options) {
  Group& joined = nb::cast<Group&>(group);
  const DispatcherConfig shape = read_config(config);
  const DeviceOptions device = read_options(options);
  std::optional<Dispatcher> made;
  {
    const nb::gil_scoped_release release;
    made.emplace(joined, name, shape, device);
  }
  new (self) PyDispatcher{group, std::move(*made)};
}

}  // namespace

PyDispatcher::~PyDispatcher() {
  // On a GPU its end may wait for the device, and another thread's rank may have to get on for that.
  const nb::gil_scoped_release release;
  const Dispatcher ended = std::move(dispatcher);
}

Place place_of(const nb::object& dispatcher) {
  const PyDispatcher& held = get(dispatcher);
  if (!held.on_cuda()) return {};
  return {.device = Device::kCuda, .ordinal = held.dispatcher.device_ordinal()};
}

#define EPISTLE_DISPATCH_SIGNATURE(name, result)                                                                     \
  nb::sig(                                                                                                           \
      "def " name                                                                                                    \
      "(self, tokens: typing.Any, *, handle: Handle | None = None, expert_ids: typing.Any = None, "                  \
      "weights: typing.Any = None, num_tokens: typing.Any = None, scales: typing.Any = None, most_tokens: int = 0, " \
      "step_seed: int = 0, step_seed_at: typing.Any = None, num_sms: int = 0, "                                      \
      "stream: typing.Any = None) -> " result)
#define EPISTLE_COMBINE_SIGNATURE(name, result)                                                                        \
  nb::sig("def " name                                                                                                  \
          "(self, out: typing.Any, *, rows: typing.Any = None, handle: Handle | None = None, "                         \
          "received: Received | None = None, weights: typing.Any = None, num_sms: int = 0, stream: typing.Any = None)" \
          " -> " result)

void bind_dispatcher(nb::module_& module) {
  const auto none = [](const char* name) { return nb::arg(name).none() = nb::none(); };
  // None is refused as any other bad input is, so that the other ranks hear of it.
  const auto required = [](const char* name) { return nb::arg(name).none(); };
  nb::class_<PyDispatcher>(
      module, "Dispatcher", nb::is_weak_referenceable(),
      "Dispatch and combine for the ranks of a group, on one device. Every call is collective: all "
      "ranks make the same calls in the same order. Tensors are those of any library, on the "
      "dispatcher's device; rows are [num_rows, hidden] with any stride from row to row. ``stream``: "
      "an integer, a stream of Torch or CuPy; None is the current stream of the tensors' library.")
      .def("__init__", &create, nb::arg("group"), nb::arg("name"), nb::arg("config"), none("options"),
           nb::sig("def __init__(self, group: Group, name: str, config: epistle._config.DispatcherConfig, options: "
                   "epistle._config.Host | epistle._config.Cuda | None = None) -> None"),
           "Collective. ``options``: None is Host().")
      .def_prop_ro(
          "group", [](const PyDispatcher& self) { return self.group; }, nb::sig("def group(self) -> Group"))
      .def_prop_ro(
          "info", [](const PyDispatcher& self) -> const DispatcherInfo& { return self.dispatcher.info(); },
          nb::rv_policy::reference)
      .def(
          "prepare", &prepare, required("expert_ids"), none("weights"), nb::kw_only(), none("num_tokens"),
          nb::arg("most_tokens") = 0, nb::arg("step_seed") = 0, none("step_seed_at"), nb::arg("num_sms") = 0,
          none("stream"),
          nb::sig("def prepare(self, expert_ids: typing.Any, weights: typing.Any = None, *, num_tokens: typing.Any = "
                  "None, most_tokens: int = 0, step_seed: int = 0, step_seed_at: typing.Any = None, num_sms: int = 0, "
                  "stream: typing.Any = None) -> Handle"),
          "Exchanges counts and gives every row its place. ``expert_ids`` [num_tokens, top_k] int32 or int64, -1 for "
          "no "
          "expert; ``weights`` [num_tokens, top_k] float32, None for all 1; ``num_tokens`` one int32 on the device, "
          "read "
          "when the call runs; ``most_tokens`` the most tokens of any rank, equal on all: ``auto`` chooses by it. "
          "``step_seed``, where experts have replicas: another value in every step, so that a token is not always sent "
          "the same way; each rank's own choice. ``step_seed_at``: one uint64 or int64 on the device to read it from "
          "when the call runs.")
      .def("dispatch", &dispatch, required("tokens"), nb::kw_only(), none("handle"), none("expert_ids"),
           none("weights"), none("num_tokens"), none("scales"), nb::arg("most_tokens") = 0, nb::arg("step_seed") = 0,
           none("step_seed_at"), nb::arg("num_sms") = 0, none("stream"),
           EPISTLE_DISPATCH_SIGNATURE("dispatch", "Received"),
           "Moves rows to the ranks of their experts. ``tokens`` [num_tokens, hidden] of the input type; ``scales`` "
           "[num_tokens, columns] in any strides where the payload has scales. With ``handle`` of a prepare, or with "
           "``expert_ids``, ``weights``, ``num_tokens``, ``most_tokens`` and ``step_seed`` as there.")
      .def(
          "dispatch_decode", &dispatch_decode, required("tokens"), required("expert_ids"), none("stream"),
          nb::sig("def dispatch_decode(self, tokens: typing.Any, expert_ids: typing.Any, stream: typing.Any = None) -> "
                  "tuple[Handle, typing.Any]"),
          "dispatch with expert_ids whose lease is given back at once, for callers who know where its rows lie "
          "(Received.borrow): (handle, Handle.expert_counts as a tensor of Torch).")
      .def("dispatch_routed", &dispatch_routed, required("tokens"), required("expert_ids"), none("weights"),
           none("scales"), nb::arg("num_sms") = 0, none("stream"),
           nb::sig("def dispatch_routed(self, tokens: typing.Any, expert_ids: typing.Any, weights: typing.Any = None, "
                   "scales: typing.Any = None, num_sms: int = 0, stream: typing.Any = None) -> "
                   "tuple[Received, Handle, tuple[typing.Any, typing.Any], tuple[typing.Any, typing.Any]]"),
           "dispatch with expert_ids, and what it gives as tensors of Torch: (lease, handle, (rows, scales or None), "
           "(Handle.local_experts or None, Handle.weights)). The first pair holds the lease, the second the handle.")
      .def("dispatch_send", &dispatch_send, required("tokens"), nb::kw_only(), none("handle"), none("expert_ids"),
           none("weights"), none("num_tokens"), none("scales"), nb::arg("most_tokens") = 0, nb::arg("step_seed") = 0,
           none("step_seed_at"), nb::arg("num_sms") = 0, none("stream"),
           EPISTLE_DISPATCH_SIGNATURE("dispatch_send", "Pending"),
           "The first half of dispatch: returns when this rank's rows are on their way. What it was given must stay "
           "unchanged until the receive half.")
      .def("dispatch_receive", &dispatch_receive, nb::arg("pending"), nb::kw_only(), none("stream"),
           nb::sig("def dispatch_receive(self, pending: Pending, *, stream: typing.Any = None) -> Received"))
      .def("combine", &combine, required("out"), nb::kw_only(), none("rows"), none("handle"), none("received"),
           none("weights"), nb::arg("num_sms") = 0, none("stream"), EPISTLE_COMBINE_SIGNATURE("combine", "None"),
           "Sums expert outputs back to their tokens, into ``out`` [num_tokens, expert_output_hidden]. ``rows`` "
           "[num_rows, "
           "expert_output_hidden], or in blocks [experts, rows, expert_output_hidden]; those of "
           "``received.expert_outputs`` are not copied, and are taken where "
           "``received`` "
           "is given without rows.")
      .def("combine_send", &combine_send, required("out"), nb::kw_only(), none("rows"), none("handle"),
           none("received"), none("weights"), nb::arg("num_sms") = 0, none("stream"),
           EPISTLE_COMBINE_SIGNATURE("combine_send", "Pending"))
      .def("combine_receive", &combine_receive, nb::arg("pending"), nb::kw_only(), none("stream"),
           nb::sig("def combine_receive(self, pending: Pending, *, stream: typing.Any = None) -> None"))
      .def("dispatch_backward", &dispatch_backward, required("handle"), required("grad_rows"), required("grad_tokens"),
           nb::kw_only(), none("grad_weights"), none("grad_probs"), nb::arg("num_sms") = 0, none("stream"),
           nb::sig(
               "def dispatch_backward(self, handle: Handle, grad_rows: typing.Any, grad_tokens: typing.Any, *, "
               "grad_weights: typing.Any = None, grad_probs: typing.Any = None, num_sms: int = 0, stream: typing.Any "
               "= None) -> None"),
           "Gradient of dispatch. ``grad_rows`` [num_rows, expert_output_hidden] in, ``grad_tokens`` [num_tokens, "
           "expert_output_hidden] out: unweighted sums. ``grad_weights``, in the shape of Handle.weights, in, and "
           "``grad_probs`` [num_tokens, top_k] out, both float32: both or neither, on all ranks alike.")
      .def("combine_backward", &combine_backward, required("handle"), required("grad_out"), nb::kw_only(),
           none("saved_rows"), none("grad_weights"), nb::arg("num_sms") = 0, none("stream"),
           nb::sig("def combine_backward(self, handle: Handle, grad_out: typing.Any, *, saved_rows: typing.Any = None, "
                   "grad_weights: typing.Any = None, num_sms: int = 0, stream: typing.Any = None) -> Received"),
           "Gradient of combine: ``grad_out`` [num_tokens, expert_output_hidden] goes to every row that took part, "
           "times "
           "its weight where weights are applied. ``saved_rows``, those that were given to combine, yield "
           "``grad_weights`` float32 in the shape of Handle.weights.")
      .def(
          "wait",
          [](PyDispatcher& self) {
            const nb::gil_scoped_release release;
            self.dispatcher.wait();
          },
          "Waits until all calls so far are done, then raises what they have found.")
      .def(
          "poll", [](const PyDispatcher& self) { return health_name(self.dispatcher.poll()); },
          "How the group stands, as far as this rank knows: ok, peer_lost, timeout, aborted or broken. Never waits.")
      .def("is_on_current_stream", &is_on_current_stream,
           "Whether a call of now, with tensors of the library of the last call's, comes behind that call: on its "
           "stream. On the host always; False where that library does not tell its stream (see DLPack's exchange "
           "table).")
      .def(
          "suspects", [](const PyDispatcher& self) { return self.dispatcher.suspects(); },
          "The ranks that poll() speaks of.")
      .def("set_placement", &set_placement, nb::arg("placement"), nb::kw_only(), none("stream"),
           nb::sig("def set_placement(self, placement: epistle._config.Placement, *, stream: typing.Any = None) -> "
                   "None"),
           "Collective, between two calls: those that follow route by ``placement``. Weights must be in their slots by "
           "then; nothing is moved here (see WeightStore). Its generation is above the one in force, and no rank has "
           "more slots than ``slots_per_rank`` of the configuration. Handles that are prepared already go on with "
           "theirs.")
      .def_prop_ro(
          "placement", [](const PyDispatcher& self) { return placement_object(self.dispatcher.placement()); },
          nb::sig("def placement(self) -> epistle._config.Placement | None"),
          "The one in force; None: experts in contiguous blocks, one slot each.")
      .def(
          "expert_tokens",
          [](const PyDispatcher& self) {
            const nb::gil_scoped_release release;
            return self.dispatcher.expert_tokens();
          },
          "How many tokens of this rank every logical expert was given since the dispatcher was created: what a "
          "balance.LoadWindow is fed with. From any thread; waits for no call.")
      .def(
          "lost_tokens", [](const PyDispatcher& self) { return self.dispatcher.lost_tokens(); },
          "How many tokens of this rank every expert would have been given whose rank is masked out, so far.")
      .def(
          "abort", [](PyDispatcher& self) { self.dispatcher.abort(); },
          "Ends every wait, on all ranks: their calls raise. From any thread.")
      .def(
          "wire_bytes",
          [](const PyDispatcher& self, const PyHandle& handle) {
            const WireBytes bytes = self.dispatcher.wire_bytes(handle.handle);
            return package_attribute("epistle._config", "WireBytes")(bytes.dispatch, bytes.combine);
          },
          nb::arg("handle"), nb::sig("def wire_bytes(self, handle: Handle) -> epistle._config.WireBytes"),
          "Bytes that one dispatch and one combine put on the wire for this rank.")
      .def_prop_ro("shared_bytes", [](const PyDispatcher& self) { return self.dispatcher.shared_bytes(); })
      .def_prop_ro("resident_bytes", [](const PyDispatcher& self) { return self.dispatcher.resident_bytes(); })
      .def_prop_ro(
          "device_ordinal", [](const PyDispatcher& self) { return self.dispatcher.device_ordinal(); },
          "CUDA: the ordinal of this rank's GPU. Host: -1.")
      .def(
          "describe_tuning",
          [](const PyDispatcher& self, std::int64_t num_tokens) { return self.dispatcher.describe_tuning(num_tokens); },
          nb::arg("num_tokens"));
}

}  // namespace epistle::python
