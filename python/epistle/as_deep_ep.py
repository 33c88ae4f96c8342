"""``python -m epistle.as_deep_ep script.py ...``: runs a script, with Epistle as its ``deep_ep``, and as that of the
processes that it starts."""

from __future__ import annotations

import os
import pathlib
import runpy
import sys

_USAGE = """\
usage: python -m epistle.as_deep_ep SCRIPT [ARGUMENT...]
       python -m epistle.as_deep_ep -m MODULE [ARGUMENT...]"""


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        print(_USAGE)
        return
    if not arguments or arguments == ["-m"]:
        sys.exit(f"error: no script is given\n{_USAGE}")
    import epistle.deep_ep

    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, os.getcwd())
        epistle.deep_ep.install(for_children=True)
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    script = pathlib.Path(arguments[0])
    if not script.exists():
        sys.exit(f"error: {script} does not exist")
    sys.argv = arguments
    sys.path.insert(0, str(script.resolve().parent))
    epistle.deep_ep.install(for_children=True)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
