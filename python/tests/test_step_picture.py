"""The picture of a step, from a trace as Torch's profiler writes it."""

from __future__ import annotations

import pathlib
import sys
import typing
import xml.dom.minidom

import pytest

pytest.importorskip("torch", reason="Torch is not installed: its wheel for Linux brings gigabytes of CUDA")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))

import step_picture

KERNELS = {
    "void epistle::cuda::(anonymous namespace)::prepare_kernel<8>(int)": "Epistle: routing",
    "void epistle::cuda::(anonymous namespace)::move_bulk_kernel<8>(int)": "Epistle: moves rows",
    "void epistle::cuda::(anonymous namespace)::sum_bulk_kernel<x>": "Epistle: sums rows",
    "ncclDevKernel_AllToAll": "NCCL",
    "sm90_xmma_gemm_bf16": "matrix products",
    "void at::native::vectorized_elementwise_kernel<4>": "other kernels and copies",
}


def event(category: str, name: str, begin: float, duration: float) -> dict[str, typing.Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": 1000 + begin, "dur": duration}


PHASES = [event("user_annotation", "step: forward", 0, 70), event("user_annotation", "step: backward", 75, 50)]


def test_kernels_are_drawn_in_the_lanes_of_what_they_do_under_their_phases() -> None:
    kernels = [event("kernel", name, 10 * place, 5) for place, name in enumerate(KERNELS)]
    before = event("kernel", "of the step before", -20, 5)
    step = step_picture.read({"traceEvents": [*PHASES, before, *kernels]})
    assert [(span.name, span.what) for span in step.kernels] == list(KERNELS.items())
    assert [(phase.what, phase.begin, phase.end) for phase in step.phases] == [
        ("forward", 0, 70),
        ("backward", 75, 125),
    ]
    picture = xml.dom.minidom.parseString(step_picture.draw("a < b", [step, step]))
    texts = [text.firstChild.data for text in picture.getElementsByTagName("text")]
    assert {"a < b", "rank 0", "rank 1", "forward", "backward", "NCCL, 5 us", "125 us"} <= set(texts)
    titles = [title.firstChild.data for title in picture.getElementsByTagName("title")]
    assert titles.count("epistle::cuda::move_bulk_kernel: 10 to 15 us") == 2


def test_a_trace_that_shows_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no phases"):
        step_picture.read({"traceEvents": [event("kernel", "k", 0, 1)]})
    with pytest.raises(ValueError, match="no kernels"):
        step_picture.read({"traceEvents": PHASES})
