"""scripts/deep-ep-tests, over a checkout of its own."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="Torch is not installed: its wheel for Linux brings gigabytes of CUDA")

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "deep-ep-tests"
PASSES = """\
import sys, time, deep_ep
assert deep_ep.__name__ == "epistle.deep_ep" and sys.argv[1:3] == ["--num-processes", "2"]
print("[tuning] SMs 24, NVL chunk 4: 1 GB/s")
print("[tuning] Best dispatch: 2 GB/s")
if "--pressure-test" in sys.argv:
    print("Testing with seed 0 ...", flush=True)
    for _ in range(3):
        print("[rank 0] Dispatch + combine bandwidth: 3 GB/s", flush=True)
    time.sleep(60)
"""


def test_records_say_what_passed_and_what_was_printed(tmp_path: pathlib.Path) -> None:
    tests = tmp_path / "checkout" / "tests"
    (tests / "elastic").mkdir(parents=True)
    (tests / "test_low_latency.py").write_text(PASSES)
    (tests / "elastic" / "test_ep.py").write_text("import sys\nsys.exit('a sum is wrong')\n")
    record = tmp_path / "deep-ep-tests.json"
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), str(record), f"{tests.parent}@v9", "--pressure-seconds", "2"],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1, ran.stderr
    results = {(test["file"], *test["arguments"]): test for test in json.loads(record.read_text())["tests"]}
    assert len(results) == 3 and all(test["revision"] == "v9" for test in results.values())
    plain = results["tests/test_low_latency.py", "--num-processes", "2"]
    assert plain["passed"] and plain["bandwidths"] == ["[tuning] Best dispatch: 2 GB/s"]
    pressed = results["tests/test_low_latency.py", "--num-processes", "2", "--pressure-test"]
    assert pressed["passed"] and (pressed["num_seeds"], pressed["num_repeats"]) == (1, 3)
    failed = results["tests/elastic/test_ep.py", "--num-processes", "2", "--skip-perf-test"]
    assert not failed["passed"] and failed["reason"] == "exit code 1: a sum is wrong"
    assert (tmp_path / "logs" / "deep-ep-2-test_ep-skip-perf-test.log").exists()


def test_pressure_that_ends_or_compares_nothing_has_not_passed(tmp_path: pathlib.Path) -> None:
    for name, script in (
        ("ends", "import os\nprint('Testing with seed 0 ...', flush=True)\nos._exit(0)\n"),
        ("waits", PASSES.replace("range(3)", "range(1)")),
    ):
        tests = tmp_path / name / "tests"
        tests.mkdir(parents=True)
        (tests / "test_low_latency.py").write_text(script)
    record = tmp_path / "record.json"
    folders = [str(tmp_path / name) for name in ("ends", "waits")]
    command = [sys.executable, str(SCRIPT), str(record), *folders, "--pressure-seconds", "1", "--only", "pressure"]
    assert subprocess.run(command, capture_output=True).returncode == 1
    reasons = [(test["passed"], test["reason"]) for test in json.loads(record.read_text())["tests"]]
    assert reasons == [
        (False, "exit code 0: Testing with seed 0 ..."),
        (False, "1 seeds begun, 1 runs of them done without a difference"),
    ]


def test_a_folder_without_tests_is_refused(tmp_path: pathlib.Path) -> None:
    ran = subprocess.run([sys.executable, str(SCRIPT), "out.json", str(tmp_path)], capture_output=True, text=True)
    assert ran.returncode == 2 and "has no folder tests" in ran.stderr
