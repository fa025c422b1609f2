"""The program, or a function, as a process of its own that need not import everything first: a fork of one that has.

Signals, exit status and output are those of `python -m recsys`. Knows nothing of what is run, or why.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from typing import Self, TypeVar

from models.threads import one_thread
from recsys.__main__ import main
from tests.runs import ROOT

FORKSERVER = get_context("forkserver")
FORKSERVER.set_forkserver_preload(["recsys.cli", "tests.loaded"])
LOOK_S = 0.02
Found = TypeVar("Found")


class Running:
    """What `subprocess.Popen` is of a command: here output and errors go to files."""

    def __init__(self, arguments: tuple[str | Path, ...], environment: Mapping[str, str]) -> None:
        """`environment`: what is other than here."""
        self._directory = Path(tempfile.mkdtemp(prefix="running-"))
        self._files = self._directory / "output", self._directory / "errors"
        for path in self._files:
            path.touch()
        self._process = FORKSERVER.Process(target=_run, args=([*map(str, arguments)], os.environ | environment, *self._files))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, or less than 0 the signal that ended it; None while it runs."""
        return self._process.exitcode

    def error_lines(self) -> Iterator[str]:
        """Whole lines of standard error as they come, until the process has ended."""
        with self._files[1].open() as said:
            line = ""
            while True:
                has_ended = self.returncode is not None
                while part := said.readline():
                    line += part
                    if line.endswith("\n"):
                        yield line
                        line = ""
                if has_ended:
                    return
                time.sleep(LOOK_S)

    def send_signal(self, number: signal.Signals) -> None:
        """Nothing once it has ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):  # ended meanwhile
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status when it has ended. TimeoutExpired."""
        self._process.join(timeout)
        if self.returncode is None:
            assert timeout is not None
            raise TimeoutExpired("recsys", timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All output and errors when it has ended; nothing the next time."""
        self.wait(timeout)
        said = [path.read_text() if path.exists() else "" for path in self._files]
        shutil.rmtree(self._directory, ignore_errors=True)
        return said[0], said[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.communicate()


def _run(arguments: list[str], environment: Mapping[str, str], output: Path, errors: Path) -> None:
    for path, stream in ((output, sys.stdout), (errors, sys.stderr)):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, stream.fileno())
        os.close(handle)
    os.environ.clear()  # that of the process it is forked from, which began at another time
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = ["recsys", *arguments]
    main()


def started(*arguments: str | Path) -> Running:
    """Start the program in the background."""
    return Running(arguments, {})


def recsys(*arguments: str | Path, timeout_s: float = 300, **environment: str) -> CompletedProcess[str]:
    """Run the program to its end; its standard output and errors as text."""
    process = Running(arguments, environment)
    try:
        output, errors = process.communicate(timeout_s)
    finally:
        process.kill()
    return CompletedProcess(arguments, process.wait(), output, errors)


def apart(function: Callable[..., Found], *arguments: object) -> Found:
    """What a function returns in a process of its own, which may fork: nothing runs beside it."""
    with ProcessPoolExecutor(1, FORKSERVER, initializer=one_thread) as executor:
        return executor.submit(function, *arguments).result()
