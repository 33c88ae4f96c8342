#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.hpp"
#include "group/group_impl.hpp"

namespace epistle::python {
namespace {

constexpr double kLongestTimeoutMs = 1e15;

/// Seconds, as Python has them; none: the setting EPISTLE_TIMEOUT_MS.
GroupOptions options_of(std::optional<double> timeout) {
  if (!timeout) return {};
  if (!(*timeout >= 0)) {
    throw Error(ErrorCode::kInvalidArgument, "the timeout is " + std::to_string(*timeout) +
                                                 " s; it must not be negative; None is the setting EPISTLE_TIMEOUT_MS");
  }
  // The library cuts what is longer than its longest.
  const auto milliseconds = static_cast<std::int64_t>(std::min(*timeout * 1000.0, kLongestTimeoutMs));
  // 0 stands for the setting in C++; whoever asks for no time at all gets the shortest there is.
  return {.timeout = std::chrono::milliseconds(milliseconds == 0 ? 1 : milliseconds)};
}

/// A group may be waited in by its thread while another drops it, so the GIL is not needed for what it does.
template <typename Call>
auto released(const Call& call) {
  const nb::gil_scoped_release release;
  return call();
}

nb::list all_gather(Group& group, const nb::bytes& data) {
  std::string gathered(data.size() * static_cast<std::size_t>(group.size()), '\0');
  released([&] { group.all_gather(data.data(), data.size(), gathered.data()); });
  nb::list parts;
  for (std::size_t rank = 0; rank < static_cast<std::size_t>(group.size()); ++rank) {
    parts.append(nb::bytes(gathered.data() + rank * data.size(), data.size()));
  }
  return parts;
}

/// Texts of C++ are any bytes; what a caller gathers is text.
std::string to_text(const std::string& bytes) {
  return nb::cast<std::string>(nb::bytes(bytes.data(), bytes.size()).attr("hex")());
}
std::string from_text(const nb::handle& text) {
  const nb::bytes bytes(nb::module_::import_("builtins").attr("bytes").attr("fromhex")(text));
  return {bytes.c_str(), bytes.size()};
}

Group from_all_gather(int rank, int num_ranks, const nb::object& all_gather_of, std::optional<double> timeout) {
  const GatherTexts gather = [&](const std::string& own) {
    const nb::gil_scoped_acquire acquire;
    std::vector<std::string> texts;
    for (const nb::handle text : all_gather_of(to_text(own))) texts.push_back(from_text(text));
    return texts;
  };
  return released([&] { return join_process_group(rank, num_ranks, gather, options_of(timeout)); });
}

nb::object bootstrap(const char* function, const nb::object& source, std::optional<double> timeout) {
  return package_attribute("epistle._bootstrap", function)(source, timeout);
}

}  // namespace

void bind_group(nb::module_& module) {
  nb::class_<Group>(module, "Group",
                    "One rank's membership of an EP group. Collective calls are made by all ranks in the same order; a "
                    "rank's own calls come from one thread at a time.")
      .def_static(
          "threads",
          [](int num_ranks, std::optional<double> timeout) {
            nb::list groups;
            for (Group& group : make_thread_groups(num_ranks, options_of(timeout))) groups.append(std::move(group));
            return groups;
          },
          nb::arg("num_ranks"), nb::arg("timeout").none() = nb::none(),
          nb::sig("def threads(num_ranks: int, timeout: float | None = None) -> list[Group]"),
          "Groups whose ranks are threads of this process: element r belongs to the thread that plays rank r. See "
          "epistle.run_threads. ``timeout``: seconds that a rank waits for another one.")
      .def_static(
          "from_launcher",
          [](std::optional<double> timeout) {
            return released([&] { return join_process_group(options_of(timeout)); });
          },
          nb::arg("timeout").none() = nb::none(),
          "Joins the processes that `epistle run`, torchrun, Open MPI, PMI or Slurm has started.")
      .def_static(
          "join",
          [](int rank, int num_ranks, const std::string& job, std::optional<double> timeout) {
            const LaunchInfo info{.rank = rank, .num_ranks = num_ranks, .local_rank = rank, .job = job};
            return released([&] { return join_process_group(info, options_of(timeout)); });
          },
          nb::arg("rank"), nb::arg("num_ranks"), nb::arg("job"), nb::arg("timeout").none() = nb::none(),
          "Joins processes of one host that share the text ``job``, which no other job has.")
      .def_static(
          "from_torch",
          [](const nb::object& group, std::optional<double> timeout) {
            return bootstrap("from_torch", group, timeout);
          },
          nb::arg("group").none() = nb::none(), nb::arg("timeout").none() = nb::none(),
          nb::sig("def from_torch(group: typing.Any = None, timeout: float | None = None) -> Group"),
          "Joins the ranks of a torch.distributed process group (None: the default one), gloo or nccl.")
      .def_static(
          "from_mpi",
          [](const nb::object& communicator, std::optional<double> timeout) {
            return bootstrap("from_mpi", communicator, timeout);
          },
          nb::arg("communicator"), nb::arg("timeout").none() = nb::none(),
          nb::sig("def from_mpi(communicator: typing.Any, timeout: float | None = None) -> Group"),
          "Joins the ranks of an mpi4py communicator.")
      .def_static(
          "from_all_gather", &from_all_gather, nb::arg("rank"), nb::arg("num_ranks"), nb::arg("all_gather"),
          nb::arg("timeout").none() = nb::none(),
          nb::sig("def from_all_gather(rank: int, num_ranks: int, all_gather: "
                  "collections.abc.Callable[[str], collections.abc.Sequence[str]], timeout: float | None = None) -> "
                  "Group"),
          "Joins ranks that can gather one string of every rank: ``all_gather(text)`` gives those of all, in rank "
          "order. It is called a few times. Ranks of several hosts are tied by TCP; set EPISTLE_JOB_SECRET there.")
      .def_prop_ro("rank", &Group::rank)
      .def_prop_ro("size", &Group::size)
      .def_prop_ro("num_hosts", &Group::num_hosts, "Hosts that the ranks are on.")
      .def_prop_ro("domain_size", &Group::domain_size,
                   "Ranks of a domain, which reach each other's host memory by load and store.")
      .def_prop_ro("gpu_domain_size", &Group::gpu_domain_size,
                   "The same of the memory of their GPUs, which may reach across hosts.")
      .def_prop_ro(
          "kind", [](const Group& group) { return std::string(to_string(group.kind())); }, "threads or processes.")
      .def_prop_ro(
          "timeout", [](const Group& group) { return std::chrono::duration<double>(group.timeout()).count(); },
          "Seconds.")
      .def("barrier", &Group::barrier, nb::call_guard<nb::gil_scoped_release>(),
           "Returns when every rank has called it.")
      .def("all_gather", &all_gather, nb::arg("data"), nb::sig("def all_gather(self, data: bytes) -> list[bytes]"),
           "Bytes of every rank, equally many on all, in rank order.")
      .def("set_mask", &Group::set_mask, nb::arg("ranks"), nb::call_guard<nb::gil_scoped_release>(),
           "From here on the group goes on without ``ranks``, which are all that are left out. Collective over the "
           "ranks "
           "that stay, which give the same, also where the group is broken. Handles from before are refused. See "
           "epistle.go_on_without.")
      .def("clear_mask", &Group::clear_mask, nb::call_guard<nb::gil_scoped_release>(),
           "set_mask of none: ranks that were left out take part again; they call it as well.")
      .def_prop_ro("masked", &Group::masked, "The ranks that are left out, ascending.")
      .def("suspects", &Group::suspects,
           "The ranks that the group is broken for, or will be, as far as this rank knows. Never waits.")
      .def(
          "leave", [](Group& group) { group.impl().depart(); },
          "Tells the other ranks that this one is gone: what waits for it throws a lost peer at once. It makes no more "
          "calls. A process that ends does so by itself.")
      .def("__repr__", [](const Group& group) {
        return "<epistle.Group rank " + std::to_string(group.rank()) + " of " + std::to_string(group.size()) + ">";
      });
  module.def("is_launched", &is_launched, "True when this process was started as one of several ranks.");
}

}  // namespace epistle::python
