"""A lease on a shared folder: who holds it is named; one that is gone is taken over, and finds that out."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tmkd.core import lease
from tmkd.core.errors import PlaceError, TmkdError
from tmkd.core.lease import leased
from tmkd.core.places import Place

HOLDER = """
import sys, time
from tmkd.core.errors import TmkdError
from tmkd.core.lease import leased
from tmkd.core.places import Place
with leased(Place.at(sys.argv[1]), TmkdError, wait=False):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"BEAT": 0.05, "POLL": 0.05, "SETTLE": 0.1}.items():
        monkeypatch.setattr(lease, name, seconds)


def writer(place: Place) -> dict[str, object]:
    return dict(json.loads(place.read("writer.json") or b"{}"))


def age(place: Place, seconds: float, **more: object) -> None:
    """Make a lease look as if its writer, on another machine, gave its last sign of life some time ago."""
    content = {**writer(place), "host": "elsewhere", "time": time.time() - seconds, **more}
    place.write("writer.json", json.dumps(content).encode())


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    place = Place.at(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        match = rf"{tmp_path} is being written by process {process.pid} on .* \(last sign of life \d+ s ago\)"
        with pytest.raises(TmkdError, match=match), leased(place, TmkdError, wait=False):
            pass
        assert writer(place)["pid"] == process.pid
    finally:
        process.kill()
        process.wait()
    began = time.monotonic()  # killed on this machine: it is not waited for
    with leased(place, TmkdError, wait=True) as held:
        held.check()
    assert time.monotonic() - began < 5
    assert place.names() == []


def test_a_second_writer_waits_for_the_first(tmp_path: Path) -> None:
    place, order = Place.at(tmp_path), list[str]()

    def second() -> None:
        with leased(place, TmkdError, wait=True):
            order.append("second")

    with leased(place, TmkdError, wait=True):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]


@pytest.mark.parametrize("seconds", [299, 301])
def test_a_lease_is_taken_over_after_five_minutes_without_a_sign_of_life(tmp_path: Path, seconds: float) -> None:
    place = Place.at(tmp_path)
    place.write("writer.json", b"{}")
    age(place, seconds, token="other", numbers="", pid=1)
    if seconds < lease.STALE:
        with pytest.raises(TmkdError, match="process 1 on elsewhere"), leased(place, TmkdError, wait=False):
            pass
    else:
        with leased(place, TmkdError, wait=False) as held:
            held.check()


@pytest.mark.parametrize("content", [b"", b"{", b'{"token": 1}', b"[]"])
def test_a_damaged_lease_is_waited_for_and_taken_over(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "STALE", 0.2)
    place = Place.at(tmp_path)
    place.write("writer.json", content)
    with pytest.raises(TmkdError, match="another process"), leased(place, TmkdError, wait=False):
        pass
    with leased(place, TmkdError, wait=True) as held:
        held.check()


def test_a_clock_that_is_wrong_only_delays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "STALE", 0.3)
    place = Place.at(tmp_path)
    place.write("writer.json", b"{}")
    age(place, -86_400, token="other", numbers="", pid=1)  # written tomorrow, says that machine
    with leased(place, TmkdError, wait=True) as held:
        held.check()


def test_a_writer_lives_on_by_its_signs_of_life(tmp_path: Path) -> None:
    place = Place.at(tmp_path)
    with leased(place, TmkdError, wait=False):
        first = writer(place)["time"]
        time.sleep(0.3)
        assert writer(place)["time"] != first


def test_a_writer_that_was_taken_over_finds_out_and_leaves_the_lease(tmp_path: Path) -> None:
    place = Place.at(tmp_path)
    with leased(place, TmkdError, wait=False) as held:
        age(place, 0, token="other", pid=7)
        time.sleep(0.2)
        with pytest.raises(PlaceError, match=r"was taken over by process 7 on elsewhere .*Run the same command"):
            held.check()
    assert writer(place)["token"] == "other"
