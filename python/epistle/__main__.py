"""``python -m epistle``: the command."""

from __future__ import annotations

import os
import pathlib
import sys


def main() -> None:
    command = pathlib.Path(__file__).parent / "bin" / "epistle"
    if not command.exists():
        sys.exit(f"error: the command is not part of this installation: {command} does not exist")
    os.execv(command, [str(command), *sys.argv[1:]])


if __name__ == "__main__":
    main()
