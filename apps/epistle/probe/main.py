"""Starts the ranks of a probe and waits for them: main.py JOB.json. The job's folder holds all files of a run.

Whoever started this ends the whole process group when time is over, so nothing here waits with a limit of its own but
for ranks whose peers have gone.
"""

import json
import os
import subprocess
import sys
import time

GRACE_S = 3.0  # for ranks whose peer has ended badly: they wait for it, maybe for ever


def start_rank(job_path, rank, folder):
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(folder, f"rank{rank}.err"), "wb") as err:
        return subprocess.Popen(
            [sys.executable, os.path.join(here, "rank.py"), job_path, str(rank)],
            stdin=subprocess.DEVNULL,
            stdout=err,
            stderr=err,
        )


def wait_for_all(ranks):
    deadline = None
    while any(rank.poll() is None for rank in ranks):
        if deadline is None and any(rank.poll() not in (None, 0) for rank in ranks):
            deadline = time.monotonic() + GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            for rank in ranks:
                if rank.poll() is None:
                    rank.kill()
                    rank.wait()
                    rank.gave_up = True
            return
        time.sleep(0.01)


def main():
    with open(sys.argv[1]) as file:
        job = json.load(file)
    ranks = [start_rank(sys.argv[1], rank, job["folder"]) for rank in range(job["num_ranks"])]
    wait_for_all(ranks)
    ends = []
    for rank in ranks:
        code = rank.returncode
        ends.append(
            {
                "signal": -code if code < 0 else 0,
                "exit_code": max(code, 0),
                "left_waiting": getattr(rank, "gave_up", False),
            }
        )
    print("\n" + json.dumps({"ranks": ends}))


main()
