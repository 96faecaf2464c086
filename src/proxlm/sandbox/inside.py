"""What runs in a confined process: a program alone, a program that its tests call, or the tests."""

from __future__ import annotations

import ast
import builtins
import os
import sys
import threading
import traceback
import types
from contextlib import suppress
from importlib import import_module
from typing import Any

from proxlm.sandbox.wire import LostError, Peer, write_frame

_LONGEST_MESSAGE, _LONGEST_TRACEBACK = 200, 4000


def run_program(source: str, peer: Peer | None) -> int:
    """Run a program as `python program.py` does; with a peer, as a module whose names are then published to it.

    Returns the exit status.
    """
    module = types.ModuleType("__main__" if peer is None else "solution")
    sys.modules[module.__name__] = module
    sys.argv = ["program.py"]
    status = 0
    try:
        exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
        if peer is not None:
            peer.publish({k: v for k, v in module.__dict__.items() if not k.startswith("__")})
            peer.serve_for_ever()
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
    except SystemExit as end:
        status = _exit_status(end.code)
    except BaseException as error:
        status = 1
        print(_traceback(error), end="", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # the program closed it, or replaced it
            continue
    return status


def _traceback(error: BaseException) -> str:
    """The end of the traceback, without our own lines and most of those of a deep recursion."""
    below = error.__traceback__.tb_next if error.__traceback__ else None
    lines = traceback.format_exception(type(error), error, below, limit=-20, chain=False)
    return "".join(lines)[-_LONGEST_TRACEBACK:]


def _exit_status(code: Any) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 255
    print(code, file=sys.stderr)
    return 1


def run_tests(tests: list[str], peer: Peer, report: int) -> None:
    """Run the tests one by one in one namespace, and report each: "" if it passed, else what was wrong.

    The report ends with true if the program was alive until the end, else with false.
    """
    module, solution = types.ModuleType("tests"), types.ModuleType("solution")
    sys.modules.update(tests=module, solution=solution)
    try:
        # The tests must not compare with a program's own `abs`, for instance, which may return anything.
        published = {
            name: value
            for name, value in peer.published().items()
            if not name.startswith("__") and not hasattr(builtins, name)
        }
        vars(solution).update(published)
        vars(module).update(published)
        modules = {name for name in published if name in sys.stdlib_module_names}
        for number, test in enumerate(tests):
            if modules:
                _take_library_modules(test, vars(module), {name: published[name] for name in modules})
            message = _run_test(test, number, vars(module))
            if peer.lost:  # the test may have caught the exception
                break
            write_frame(report, message)
    except LostError:
        pass
    write_frame(report, not peer.lost)


def _take_library_modules(test: str, names: dict[str, Any], published: dict[str, Any]) -> None:
    """Where a test says `math.isclose` and imports nothing, have it mean Python's own, not a `math` of the program.

    published: what the program calls by the name of a module of the library.

    A program's function may have a module's name (`copy`, `bisect`), so a name that the test only calls stays as it
    is, and so does one whose attribute the module lacks.
    """
    with suppress(Exception):  # what is wrong with the test, it reports itself
        for node in ast.walk(ast.parse(test)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = node.value.id
                if name in published and names.get(name) is published[name]:
                    own = import_module(name)
                    if hasattr(own, node.attr):
                        names[name] = own


def _run_test(test: str, number: int, names: dict[str, Any]) -> str:
    try:
        exec(compile(test, f"test {number}", "exec", dont_inherit=True), names)
    except LostError:
        return "lost"
    except BaseException as error:
        text = "".join(traceback.format_exception_only(error)).strip()
        return text[-_LONGEST_MESSAGE:] or "failed"
    return ""


def take_streams(wanted: dict[int, int]) -> None:
    """Make these the only open files of this process.

    Args:
        wanted: Descriptor numbers, below 10, with the open files to put there.
    """
    moved = {number: os.dup2(source, number + 100, inheritable=False) for number, source in wanted.items()}
    for number, source in moved.items():
        os.dup2(source, number)
    first = 0
    for number in [*sorted(wanted), os.sysconf("SC_OPEN_MAX")]:
        if first < number:  # closerange(0, 0) closes everything
            os.closerange(first, number)
        first = number + 1
    os.environ.clear()
