"""What the scripts that judge epistle calibrate share: their options, the program, and one run of it."""
import json
import subprocess
import sys


class UsageError(Exception):
    pass


def options_of(arguments, defaults, usage):
    """Values of the options in `defaults`, each of which takes one, and what else was given."""
    options = dict(defaults)
    others = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in ("-h", "--help"):
            print(usage.strip())
            sys.exit(0)
        if argument in options:
            if not rest:
                raise UsageError(f"{argument} needs a value")
            options[argument] = rest.pop(0)
        elif argument.startswith("-"):
            raise UsageError(f"unknown argument {argument}\n\n{usage}")
        else:
            others.append(argument)
    return options, others


def find_program(root, given):
    if given:
        return given
    programs = sorted(root.glob("build/*/apps/epistle/epistle"), key=lambda path: path.stat().st_mtime)
    if not programs:
        raise UsageError("there is no built epistle; build it or give --epistle PROGRAM")
    return str(programs[-1])


def run_program(command):
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UsageError(f"cannot run {command[0]}: {error.strerror}") from error
    if result.returncode != 0:
        raise UsageError(result.stderr.strip())
    return result.stdout


def run_calibrate(program, fitted, others, out):
    """Errors of the tables `others`, one entry each."""
    run_program([program, "calibrate", "--fit", *map(str, fitted), "--evaluate", *map(str, others), "--json", str(out),
                 "--quiet"])
    return json.loads(out.read_text(encoding="utf-8"))["tables"]
