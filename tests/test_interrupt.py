"""Ctrl-C at a real process, as a terminal sends it and as `kill -INT` does: one line, status 130, nothing is left."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import nbformat
import pytest
from processes import alive, wait_until

from atr.system import interrupt
from atr.system.places import PROJECT

if sys.platform == "win32":
    pytest.skip("signals and terminals of POSIX", allow_module_level=True)

import fcntl
import pty
import termios

WAIT = """
import os, pathlib, time
pathlib.Path({folder!r}, f"{mark}.{{os.getpid()}}").touch()
time.sleep(300)
"""
IMPORTING = """
class Finder:
    def find_spec(self, name, *rest):
        if name == "torch":
            exec({wait!r})
sys.meta_path.insert(0, Finder())
"""
COMMAND = """
import sys
from atr.system import places
{before}
if __name__ == "__main__":
    from pathlib import Path
    from atr.__main__ import main
    places.PROJECT = Path({folder!r})
    sys.argv = ["atr", *{words!r}]
    main()
"""


class Process:
    """One that takes its Ctrl-C from a terminal, or from `kill`."""

    def __init__(self, command, terminal):
        own, theirs = pty.openpty() if terminal else os.pipe()

        def prepare():
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # whatever the tests were started with
            if terminal:
                fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

        streams = {"stdin": theirs if terminal else subprocess.DEVNULL, "stdout": theirs, "stderr": theirs}
        environment = os.environ | {"PYTHONPATH": str(PROJECT), "TERM": "xterm"}
        options = {"env": environment, "start_new_session": True, "preexec_fn": prepare}
        self.process = subprocess.Popen(command, **streams, **options)
        os.close(theirs)
        self.own, self.terminal, self.said = own, terminal, b""
        self.reader = threading.Thread(target=self._read)  # or what it prints would fill the terminal
        self.reader.start()

    def _read(self):
        with suppress(OSError):  # how a terminal ends
            while text := os.read(self.own, 4096):
                self.said += text

    def type(self, text):
        os.write(self.own, text)

    def interrupt(self):
        """Its status, and all that it has printed."""
        if self.terminal:
            self.type(b"\x03")
        else:
            os.killpg(self.process.pid, signal.SIGINT)
        status = self.process.wait(60)
        self.reader.join(60)
        return status, self.said.decode()

    def close(self):
        self.process.kill()
        self.process.wait()
        self.reader.join(60)
        os.close(self.own)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a command in a project of two notebooks; at `moment` it waits, and a file in `tmp_path` says who does."""
    monkeypatch.setenv("ATR_RESULTS", str(tmp_path / "results"))
    started = []

    def wait(mark):
        return WAIT.format(folder=str(tmp_path), mark=mark)

    def begin(words, moment="", terminal=False):
        (tmp_path / "notebooks").mkdir()
        for name in ("97_a", "98_b"):
            sources = {
                "parameters": "profile_name, seeds, device, executor = 'smoke', None, 'cpu', 'local'",
                "grid": (wait(moment) if moment == "planning" else "") + "\ngrid = []",
                "body": wait(name) if moment == "notebook" else "",
            }
            cells = [nbformat.v4.new_code_cell(text, metadata={"tags": [tag]}) for tag, text in sources.items()]
            kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
            nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / f"notebooks/{name}.ipynb")
        script = tmp_path / "script.py"
        before = IMPORTING.format(wait=wait(moment)) if moment == "importing" else ""
        script.write_text(COMMAND.format(before=before, folder=str(tmp_path), words=words))
        started.append(Process([sys.executable, str(script)], terminal))
        return started[-1]

    yield begin
    for one in started:
        one.close()


@pytest.mark.parametrize(
    "moment, marks, options, terminal",
    [
        ("importing", ["importing"], [], False),
        ("planning", ["planning"], [], True),
        ("notebook", ["97_a"], ["--jobs", "1"], False),
        ("notebook", ["97_a", "98_b"], ["--jobs", "2"], True),
    ],
)
def test_a_study_ends_in_one_line_at_any_moment(start, tmp_path, moment, marks, options, terminal):
    process = start(["study", "97", "98", "--profile", "smoke", *options], moment, terminal)
    wait_until(lambda: all(list(tmp_path.glob(f"{mark}.*")) for mark in marks) or process.process.poll() is not None)
    status, said = process.interrupt()
    assert status == interrupt.INTERRUPT_STATUS, said
    assert said.rstrip().endswith(interrupt.STOP_NOTE) and said.count(interrupt.STOP_NOTE) == 1
    assert "Traceback" not in said and "KeyboardInterrupt" not in said
    waiting = [int(path.suffix[1:]) for mark in marks for path in tmp_path.glob(f"{mark}.*")]
    wait_until(lambda: not any(map(alive, waiting)), 30)


def test_who_has_it_ignored_is_not_stopped(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupt.stop_at_once()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_is_an_exception_for_who_has_to_tidy_up():
    before = signal.signal(signal.SIGINT, interrupt.stop)
    try:
        with interrupt.as_exception():
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is interrupt.stop
    finally:
        signal.signal(signal.SIGINT, before)
