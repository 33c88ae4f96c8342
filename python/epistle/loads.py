"""``python -m epistle.loads FILE.pt... > loads.json``: expert loads that SGLang or vLLM recorded.

``epistle balance --loads`` reads them. Files of several ranks are added up.
"""

from __future__ import annotations

import argparse
import json
import sys

from epistle.balance_recordings import RecordingError, read_recording


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m epistle.loads", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE.pt", help="what the recorder wrote; those of all ranks")
    parser.add_argument(
        "--experts", type=int, default=0, metavar="N", help="number of experts, where only ids are recorded"
    )
    parser.add_argument("--ranks", type=int, metavar="N", help='written as "ranks"')
    parser.add_argument("--slots", type=int, metavar="N", help='written as "slots", of all ranks together')
    options = parser.parse_args(arguments)
    total = None
    for name in options.files:
        try:
            loads = read_recording(name, options.experts)
        except (OSError, RecordingError) as error:
            print(f"error: cannot read the loads '{name}': {error}", file=sys.stderr)
            return 3
        if total is not None and total.shape != loads.shape:
            print(
                f"error: '{name}' has loads of the shape {loads.shape}, expected {total.shape} as the first",
                file=sys.stderr,
            )
            return 3
        total = loads if total is None else total + loads
    assert total is not None
    document: dict[str, object] = {"loads": total.tolist()}
    for field in ("ranks", "slots"):
        if getattr(options, field) is not None:
            document[field] = getattr(options, field)
    json.dump(document, sys.stdout)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
