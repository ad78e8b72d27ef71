"""Runs the functions of a program named `case_...` one after the other, each with a client and keys of its own.

One line each: `ok NAME` or `FAILED NAME: why`.
"""

import sys
import time


def run(program, cases, connect):
    host, port = sys.argv[1].rsplit(":", 1)
    well = True
    for function, body in list(cases.items()):
        if not function.startswith("case_"):
            continue
        name = program + "/" + function.removeprefix("case_").replace("_", "-")
        try:
            body(connect(host, int(port)), "/" + name + "/")
            print("ok", name, flush=True)
        except Exception as error:  # Whatever goes wrong is what the case says.
            well = False
            why = f"{type(error).__name__}: {error}".replace("\n", " ")
            print(f"FAILED {name}: {why}", flush=True)
    sys.exit(0 if well else 1)


def equal(what, actual, expected):
    assert actual == expected, f"{what} is {actual!r}, not {expected!r}"


def eventually(what, holds, limit=20.0):
    until = time.monotonic() + limit
    while not holds():
        assert time.monotonic() < until, f"{what} did not come about"
        time.sleep(0.05)


def raises(what, kind, body):
    try:
        body()
    except kind as error:
        return error
    raise AssertionError(f"{what} was not refused")
