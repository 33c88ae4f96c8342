"""Records what the GPUs of a job do in one step, and draws it: a lane for each kind of kernel of each rank."""

from __future__ import annotations

import dataclasses
import html
import json
import pathlib
import re
import tempfile
import typing

import torch

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# The first pattern that a kernel's name has says what it is.
_KINDS = {
    "Epistle: routing": (r"epistle.*(prepare|count_entries|scan_entries|place_entries)", "#b7791f"),
    "Epistle: sums rows": (r"epistle.*(sum|combine|gradient|scale_rows)", "#2f855a"),
    "Epistle: moves rows": (r"epistle", "#2b6cb0"),
    "NCCL": (r"nccl", "#6b46c1"),
    "matrix products": (r"gemm|cutlass|nvjet|xmma|cublas|gemv", "#c05621"),
    "other kernels and copies": (r"", "#a0aec0"),
}
_WIDTH, _LEFT, _RIGHT, _LANE, _GAP = 1000, 190, 10, 16, 14


@dataclasses.dataclass(frozen=True)
class Span:
    """Microseconds since the step began."""

    what: str  # of _KINDS, or the phase
    name: str
    begin: float
    end: float


@dataclasses.dataclass(frozen=True)
class Step:
    """What one rank did."""

    phases: list[Span]
    kernels: list[Span]


def kind_of(kernel: str) -> str:
    return next(kind for kind, (pattern, _) in _KINDS.items() if re.search(pattern, kernel, re.IGNORECASE))


def record(phases: Sequence[tuple[str, Callable[[], object]]]) -> Step:
    """Runs the phases of a step one by one, and waits for the GPU behind each, so that it shows where one ends."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        for name, run in phases:
            with torch.profiler.record_function(f"step: {name}"):
                run()
                torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        trace = pathlib.Path(folder, "trace.json")
        profile.export_chrome_trace(str(trace))
        return read(json.loads(trace.read_text()))


def read(trace: dict[str, typing.Any]) -> Step:
    """From the events of a trace of Chrome, as Torch's profiler writes it."""
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    marks = [event for event in events if event.get("cat") == "user_annotation" and event["name"].startswith("step: ")]
    if not marks:
        raise ValueError("the trace has no phases of a step: what record() ran was not profiled")
    start = min(event["ts"] for event in marks)
    done = max(event["ts"] + event["dur"] for event in marks)

    def span(what: str, event: dict[str, typing.Any]) -> Span:
        return Span(what, event["name"], event["ts"] - start, event["ts"] + event["dur"] - start)

    kernels = [
        span(kind_of(event["name"]), event)
        for event in events
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") and start <= event["ts"] <= done
    ]
    if not kernels:
        raise ValueError("the trace has no kernels: the profiler could not watch the GPU")
    return Step([span(event["name"].removeprefix("step: "), event) for event in marks], kernels)


def draw(title: str, ranks: Sequence[Step]) -> str:
    """Each rank's clock begins with its own step, which a barrier should come before."""
    end = max(span.end for step in ranks for span in (*step.phases, *step.kernels))

    def x_of(time_us: float) -> float:
        return _LEFT + time_us / end * (_WIDTH - _LEFT - _RIGHT)

    shapes = [_text(_WIDTH / 2, 16, title, "middle")]
    top = 30
    for rank, step in enumerate(ranks):
        first = top
        shapes.append(_text(4, top + 12, f"rank {rank}"))
        for phase in step.phases:
            shapes.append(_text((x_of(phase.begin) + x_of(phase.end)) / 2, top + 12, phase.what, "middle"))
        top += _LANE + 2
        for kind, (_, colour) in _KINDS.items():
            spans = [span for span in step.kernels if span.what == kind]
            busy = sum(span.end - span.begin for span in spans)
            shapes.append(_text(_LEFT - 6, top + 12, f"{kind}, {busy:.0f} us", "end"))
            shapes += [_bar(x_of(span.begin), x_of(span.end), top, colour, span) for span in spans]
            top += _LANE + 2
        for phase in step.phases[1:]:
            x = x_of(phase.begin)
            shapes.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{first}" y2="{top}" stroke="#4a5568"/>')
        top += _GAP
    for fifth in range(6):
        anchor = "end" if fifth == 5 else "middle"
        shapes.append(_text(x_of(end * fifth / 5), top + 6, f"{end * fifth / 5:.0f} us", anchor))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top + 16}" font-family="sans-serif" '
    return "\n".join([f'{head}font-size="11">', '<rect width="100%" height="100%" fill="white"/>', *shapes, "</svg>\n"])


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _bar(begin: float, end: float, top: int, colour: str, span: Span) -> str:
    name = re.sub(r"^void |\(anonymous namespace\)::|<.*|\(.*", "", span.name)
    title = html.escape(f"{name}: {span.begin:.0f} to {span.end:.0f} us")
    size = f'width="{max(end - begin, 0.6):.1f}" height="{_LANE}"'
    return f'<rect x="{begin:.1f}" y="{top}" {size} fill="{colour}"><title>{title}</title></rect>'
