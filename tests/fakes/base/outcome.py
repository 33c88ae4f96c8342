"""What a fake package does at a point: FAKE_OUTCOME is "good", or "POINT-WAY" as "import-hang", "init-segfault",
"iterations-fail". FAKE_RANK says on which rank; all of them where it is not set."""

import os
import time

import torch


def reach(point):
    where, _, way = os.environ.get("FAKE_OUTCOME", "good").partition("-")
    if where != point:
        return
    only = os.environ.get("FAKE_RANK")
    if only is not None and int(only) != torch.distributed.rank:
        return
    if way == "hang":
        time.sleep(600)
    if way == "segfault":
        torch.crash()
    if way == "exit":
        os._exit(42)
    if way == "fail":
        raise RuntimeError(f"fake failure of {point}")


def is_wrong(what):
    return os.environ.get("FAKE_OUTCOME") == f"wrong-{what}"
