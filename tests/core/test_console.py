"""tmkd as a library is silent; the command line shows its log and its progress."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from tmkd.core.console import progress, set_quiet

log = logging.getLogger("tmkd.tests.console")


def test_a_library_prints_nothing_and_configures_nothing() -> None:
    program = (
        "import logging, tmkd; from tmkd.core.console import progress\n"
        "log = logging.getLogger('tmkd.anything'); log.info('a note'); log.warning('a warning')\n"
        "with progress('work', 2) as bar: bar.advance(2)\n"
        "print(logging.getLogger().handlers, logging.getLogger('tmkd').level)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[] 0\n", "")


def test_the_command_line_shows_notes_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    set_quiet(False)
    set_quiet(False)  # one handler, however often it is called
    log.info("[bold]a note[/bold] at 100% :smile:")
    log.warning("a warning")
    with progress("work", 2, unit="pieces") as bar:
        bar.advance(2, "loss 0.1")
    lines = capfd.readouterr().err.splitlines()
    assert lines[:2] == ["[bold]a note[/bold] at 100% :smile:", "warning: a warning"]
    assert lines[2].startswith("work: 2/2 pieces, ")
    assert lines[2].endswith("0 s left, loss 0.1")
    assert len(lines) == 3


def test_quiet_leaves_warnings_alone(capfd: pytest.CaptureFixture[str]) -> None:
    set_quiet(True)
    log.info("a note")
    log.warning("a warning")
    with progress("work", 2) as bar:
        bar.advance(2)
    assert capfd.readouterr().err == "warning: a warning\n"
