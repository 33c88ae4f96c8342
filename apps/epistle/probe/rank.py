"""One rank of a probe: rank.py JOB.json RANK. What it reaches is told level by level, in a file of its own."""

import importlib
import json
import sys

from packages import PACKAGES, Untried, import_package
from world import Report, World, routing_hash

PROOF_KERNELS = 12  # names of kernels that a record keeps


def short(error):
    text = f"{type(error).__name__}: {error}".strip().splitlines()
    return text[0] if text else type(error).__name__


class Stopped(Exception):
    pass


class Levels:
    """Runs steps, and says of each that it began, and how it ended."""

    def __init__(self, report):
        self.report = report

    def run(self, level, step):
        self.report.add(begin=level)
        try:
            result = step()
        except Untried as reason:
            self.report.add(untried=level, reason=str(reason))
            raise Stopped from reason
        except Exception as error:  # the package's own, whatever it is
            self.report.add(failed=level, reason=short(error))
            raise Stopped from error
        self.report.add(reached=level)
        return result


def device_version(torch, on_gpu):
    if not on_gpu:
        return {"torch": str(torch.__version__)}
    return {
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda or ""),
        "nccl": ".".join(str(part) for part in torch.cuda.nccl.version()),
    }


def version_of(module):
    top = sys.modules.get(module.__name__.split(".")[0])
    found = getattr(module, "__version__", None) or getattr(top, "__version__", None)
    if found is None and hasattr(module, "get_lib_version"):
        found = module.get_lib_version()
    return str(found) if found is not None else ""


def kernels_of(world, call):
    """Names of the kernels that one pair runs, as proof that they did."""
    if not world.on_gpu:
        return []
    try:
        profiler = importlib.import_module("torch.profiler")
        with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as profile:
            call()
            world.synchronise()
        return sorted({event.key for event in profile.key_averages()})[:PROOF_KERNELS]
    except Exception as error:  # a profiler that another one keeps busy is no fault of the package
        return [f"no profile: {short(error)}"]


class Run:
    def __init__(self, world, package, module):
        self.world = world
        self.before = world.free_bytes()
        self.backend = package(world, module)
        self.rows, self.ids, self.weights = world.inputs()
        self.kept = None

    def pair(self):
        return self.backend.combine(self.dispatch(), self.ids, self.weights)

    def dispatch(self):
        return self.backend.dispatch(self.rows, self.ids, self.weights)

    def save_outputs(self):
        """Of one more pair, for the oracle."""
        state = self.dispatch()
        self.world.synchronise()
        self.world.save("received", self.backend.received_rows(state))
        sums = self.backend.combine(state, self.ids, self.weights)
        self.world.synchronise()
        self.world.save("sums", sums)

    def measure(self, job):
        times = {"period": [], "dispatch": [], "combine": []}
        for round_idx in range(job["warmups"] + job["rounds"]):
            # Always whole pairs: packages that alternate between two buffers go wrong after half of one.
            sample = self.world.time_steps_us(
                self.pair, [self._dispatch_and_keep, self._combine_kept], ["dispatch", "combine"]
            )
            sample["period"] = self.world.time_us(self.pair, job["pairs"])
            if round_idx >= job["warmups"]:
                for name, value in sample.items():
                    times[name].append(value)
        return times

    def _dispatch_and_keep(self):
        self.kept = self.dispatch()

    def _combine_kept(self):
        self.backend.combine(self.kept, self.ids, self.weights)

    def steady(self, job):
        for _ in range(job["warmups"] + 1):
            self.pair()
        after = self.world.free_bytes()
        self.world.barrier()
        self.save_outputs()
        facts = {
            "per_expert": self.backend.per_expert,
            "weighted": self.backend.weighted,
            "kernels": kernels_of(self.world, self.pair),
        }
        if after is not None:
            facts["device_bytes"] = self.before - after
        if job["rounds"] > 0:
            facts["times_us"] = self.measure(job)
            self.save_outputs()  # what the timed calls did to its state shows here
        self.world.barrier()
        return facts


def play(job, rank, report):
    levels = Levels(report)
    package = PACKAGES[job["package"]]

    def import_it():
        """With its version: asking for it is what loads the library of a package that loads it late."""
        module = import_package(package)
        return module, version_of(module)

    module, version = levels.run("imported", import_it)
    report.add(version=version)

    def initialise():
        torch = importlib.import_module("torch")
        if job["device"] == "cuda" and torch.cuda.device_count() < job["num_ranks"]:
            raise Untried(
                f"it needs a GPU for each of {job['num_ranks']} ranks, and torch sees {torch.cuda.device_count()}"
            )
        world = World(torch, job, rank)
        report.add(stack=device_version(torch, world.on_gpu))
        world.join()
        return Run(world, package, module)

    run = levels.run("initialised", initialise)
    facts = levels.run("steady", lambda: run.steady(job))
    report.add(facts=facts)
    if rank == 0:
        report.add(routing_hash=routing_hash(job))
    report.add(begin="leaving")
    run.backend.close()
    run.world.leave()
    report.add(reached="leaving")


def main():
    with open(sys.argv[1]) as file:
        job = json.load(file)
    rank = int(sys.argv[2])
    try:
        play(job, rank, Report(job["folder"], rank))
    except Stopped:
        sys.exit(3)


main()
