"""Labels at an address, on a real S3 server and on a shared disk: each pair is labelled once, whatever goes wrong."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import Tmkd, pair_rows, pool_rows, write_jsonl
from encoder_fixtures import tiny
from places_fixtures import KEYS, Proxy, bucket, proxy, s3_port, the_proxy

from tmkd.core import lease
from tmkd.core.errors import LabelError, NoRoomError, PlaceError, TmkdError
from tmkd.core.places import Place
from tmkd.data.pairs import Pairs
from tmkd.pipeline.shared_checks import SharedLabels
from tmkd.pipeline.steps import label as label_module
from tmkd.pipeline.steps.stored_labels import Labels, stored
from tmkd.pipeline.store.fingerprint import depends_on
from tmkd.pipeline.store.label_store import LabelStore
from tmkd.pipeline.store.workspace import Busy, Workspace
from tmkd.teachers.interface import Scored

__all__ = ["bucket", "proxy", "s3_port", "the_proxy"]

PART = 5  # pairs that are labelled between two writes


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "POLL", 0.1)
    monkeypatch.setattr(lease, "SETTLE", 0.1)


@pytest.fixture(params=["s3", "disk"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "shared")
    return f"s3://{request.getfixturevalue('bucket')}/labels"


def pairs_of(numbers: range) -> Pairs:
    return Pairs.build([f"question {number}" for number in numbers], [f"passage {number}" for number in numbers])


def number_of(pairs: Pairs) -> list[int]:
    return [int(text.split()[1]) for text in pairs.questions]


class Teacher:
    """Labels a pair with its number and minus that, and remembers which.

    Args:
        name: its name and fingerprint.
        stops_after: fails after so many pairs.
    """

    def __init__(self, name: str = "judge", stops_after: int | None = None, log: Path | None = None) -> None:
        self.name, self.stops_after, self.log, self.labelled = name, stops_after, log, list[int]()

    def scored(self, pairs: Pairs) -> Iterator[Scored]:
        numbers = np.array(number_of(pairs))
        for start in range(0, len(numbers), PART):
            rows = np.arange(start, min(start + PART, len(numbers)))
            if self.stops_after is not None and len(self.labelled) >= self.stops_after:
                raise TmkdError("the teacher stopped")
            self.labelled += numbers[rows].tolist()
            if self.log is not None:
                with self.log.open("a") as file:
                    file.write("".join(f"{number}\n" for number in numbers[rows]))
                time.sleep(0.1)
            yield rows, np.stack([numbers[rows], -numbers[rows]], axis=1).astype(np.float32)

    def label(self, root: Path, address: str, numbers: range = range(22), **mode: str) -> LabelStore:
        pairs = pairs_of(numbers).distinct()
        header = {"teacher": self.name, "classes": 2, "dtype": "float32"}
        content = depends_on(settings={}, inputs={"model": self.name, "pairs": pairs})
        workspace = Workspace(root, labels=Place.at(address), **mode)  # type: ignore[arg-type]
        store = stored(workspace, Labels("labels", header, content, pairs, self.name), self.scored)
        found = store.logits_for(pairs.ids)[:, 0].tolist()
        assert found == number_of(pairs)
        return store


def the_store(address: str) -> Place:
    (name,) = Place.at(address).names()
    return Place.at(address) / name


def parts_of(place: Place) -> list[str]:
    return [name for name in place.names() if name.startswith("part-")]


def faults(address: str) -> list[str]:
    return [str(fault) for check in SharedLabels(address).verify() for fault in check.faults]


def test_a_second_machine_labels_nothing_again(address: str, tmp_path: Path) -> None:
    first, second = Teacher(), Teacher()
    one = first.label(tmp_path / "one", address)
    assert sorted(first.labelled) == list(range(22))
    place = the_store(address)
    assert len(parts_of(place)) == 5
    assert place.names() == [*sorted(path.name for path in one.folder.iterdir())]  # no lease is left
    two = second.label(tmp_path / "two", address)
    assert second.labelled == []
    assert (two.folder / "manifest.json").read_bytes() == (one.folder / "manifest.json").read_bytes()
    assert faults(address) == []
    (shown,) = SharedLabels(address).show().stores
    row = shown.to_json()
    assert (row["folder"], row["model"], row["pairs"], row["labelled"]) == (str(place), "judge", 22, 22)
    assert row["finished"]


def test_a_finished_store_is_read_once_and_without_writing(proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    Teacher().label(tmp_path / "one", f"s3://{bucket}/labels")
    proxy.seen.clear()
    Teacher().label(tmp_path / "two", f"s3://{bucket}/labels")
    assert {method for method, _ in proxy.seen} == {"GET"}  # keys that may only read are enough
    paths = [path for _, path in proxy.seen]
    assert sum("part-" in path for path in paths) == len({path for path in paths if "part-" in path}) == 5
    proxy.seen.clear()
    Teacher().label(tmp_path / "two", f"s3://{bucket}/labels")
    assert [path.rpartition("/")[2] for _, path in proxy.seen] == ["step.json"]


def test_more_pairs_compute_only_what_is_missing(address: str, tmp_path: Path) -> None:
    Teacher().label(tmp_path / "one", address, range(22))
    more = Teacher()
    more.label(tmp_path / "two", address, range(10, 30))
    assert sorted(more.labelled) == list(range(22, 30))
    other = Teacher("another teacher")
    other.label(tmp_path / "two", address, range(10, 30))
    assert sorted(other.labelled) == list(range(10, 30))
    assert len(Place.at(address).names()) == 3
    assert not list((tmp_path / "two" / "tokens").iterdir())
    assert faults(address) == []


def test_another_machine_continues_where_the_first_stopped(address: str, tmp_path: Path) -> None:
    first, second = Teacher(stops_after=10), Teacher()
    with pytest.raises(TmkdError, match="the teacher stopped"):
        first.label(tmp_path / "one", address)
    (shown,) = SharedLabels(address).show().stores
    assert (shown.check.labelled, shown.to_json()["finished"], shown.check.count) == (10, False, 22)
    second.label(tmp_path / "two", address)
    assert sorted(first.labelled + second.labelled) == list(range(22))
    again = Teacher()
    again.label(tmp_path / "one", address)  # its unfinished step is completed from there
    assert again.labelled == []


def test_labels_of_a_workspace_are_sent_when_it_gets_an_address(address: str, tmp_path: Path) -> None:
    Teacher().label(tmp_path / "one", str(tmp_path / "elsewhere"))
    again, other = Teacher(), Teacher()
    again.label(tmp_path / "one", address)
    assert again.labelled == []
    other.label(tmp_path / "two", address)
    assert other.labelled == []


WORKER = """
import sys
from pathlib import Path
from test_shared_labels import Teacher
Teacher(log=Path(sys.argv[3])).label(Path(sys.argv[1]), sys.argv[2], range(int(sys.argv[4])))
"""


def worker(root: Path, address: str, log: Path, count: int = 60) -> subprocess.Popen[str]:
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER, str(root), address, str(log), str(count)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def lines(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()] if log.is_file() else []


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_writer_keeps_others_out_and_when_it_is_killed_loses_what_it_had_in_hand(bucket: str, tmp_path: Path) -> None:
    address, log = f"s3://{bucket}/labels", tmp_path / "log"
    process = worker(tmp_path / "one", address, log, 100)
    wait_for(lambda: len(lines(log)) >= 2 * PART)
    busy = rf"is being written by process {process.pid} on "
    with pytest.raises(Busy, match=busy):
        Teacher().label(tmp_path / "two", address, range(100), mode="skip")
    place = the_store(address)
    spoilt = parts_of(place)[0]
    place.write(spoilt, b"bad")
    with pytest.raises(Busy, match=busy):
        SharedLabels(address).repair()
    wait_for(lambda: len(lines(log)) >= 6 * PART)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    labelled = lines(log)
    assert len(labelled) < 100
    assert "writer.json" in place.names()
    again = Teacher()
    again.label(tmp_path / "two", address, range(100))
    assert {*labelled, *again.labelled} == set(range(100))
    twice = len(labelled) + len(again.labelled) - 100
    assert PART <= twice <= 2 * PART  # the part that was spoilt, and at most the one that it had in hand
    assert "writer.json" not in place.names()
    assert faults(address) == []
    first = Teacher()
    first.label(tmp_path / "one", address, range(100))  # the killed one's workspace
    assert first.labelled == []


def test_two_writers_at_once_label_each_pair_once(address: str, tmp_path: Path) -> None:
    class Slow(Teacher):
        def scored(self, pairs: Pairs) -> Iterator[Scored]:
            for one in super().scored(pairs):
                time.sleep(0.05)
                yield one

    teachers = [Slow() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda number: teachers[number].label(tmp_path / str(number), address), range(3)))
    assert sorted(teacher.labelled for teacher in teachers)[:2] == [[], []]
    assert sorted(number for teacher in teachers for number in teacher.labelled) == list(range(22))
    assert faults(address) == []


def test_a_writer_that_was_taken_over_stops_and_mixes_nothing(address: str, tmp_path: Path) -> None:
    class Slow(Teacher):
        def scored(self, pairs: Pairs) -> Iterator[Scored]:
            for count, one in enumerate(super().scored(pairs)):
                if count == 2:  # the process slept so long that another one took over, and finished
                    (held,) = list(Place.at(address).names())
                    place = Place.at(address) / held
                    there = json.loads(place.read("writer.json") or b"")
                    place.write("writer.json", json.dumps({**there, "host": "x", "time": 0}).encode())
                    other.label(tmp_path / "two", address)
                yield one

    slow, other, again = Slow(), Teacher(), Teacher()
    match = r"was taken over by .*what it stored before stays.*15 of 22 pairs are labelled with judge and stay in"
    with pytest.raises(PlaceError, match=re.compile(match, re.DOTALL)):
        slow.label(tmp_path / "one", address)
    assert sorted(other.labelled) == sorted(set(range(22)) - set(slow.labelled[:10]))
    again.label(tmp_path / "one", address)
    assert again.labelled == []
    assert faults(address) == []
    assert set(parts_of(the_store(address))) >= {
        part["file"] for part in json.loads(the_store(address).read("manifest.json") or b"")["parts"]
    }


REFUSED = {
    "credentials end": ((403, "ExpiredToken"), "the credentials have expired; renew them"),
    "the bucket is full": ((507, "XMinioStorageFull"), "there is no room; free some, or raise the quota"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_ends_in_the_middle_is_said_and_nothing_is_lost(
    name: str, proxy: Proxy, bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="tmkd")
    address, refusal = f"s3://{bucket}/labels", REFUSED[name][0]

    def refuse(method: str, path: str) -> tuple[int, str] | None:
        if name == "credentials end":
            return refusal if len(proxy.seen) > 20 else None
        return refusal if method == "PUT" and sum("part-" in one for _, one in proxy.seen) > 2 else None

    proxy.refuse = refuse
    first = Teacher()
    with pytest.raises(PlaceError, match=REFUSED[name][1]) as found:
        first.label(tmp_path / "one", address)
    count = len(first.labelled)
    assert PART < count < 22
    assert f"{count} of 22 pairs are labelled with judge and stay in {tmp_path}" in str(found.value)
    assert "the same command continues" in str(found.value)
    proxy.refuse = lambda method, path: None
    second = Teacher()
    second.label(tmp_path / "one", address)
    assert sorted(first.labelled + second.labelled) == list(range(22))  # not even the last part is labelled again
    other = Teacher()
    other.label(tmp_path / "two", address)
    assert other.labelled == []
    written = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    assert not any(key in written + caplog.text + str(found.value) for key in list(KEYS.values())[:3])


def test_a_shared_disk_that_is_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no disk of a limited size can be mounted here")
    try:
        first, second = Teacher(), Teacher()
        with pytest.raises(NoRoomError, match=f"no room on disk at {disk}/"):
            first.label(tmp_path / "one", str(disk))
        assert 0 < len(first.labelled) < 22
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        second.label(tmp_path / "one", str(disk))
        assert sorted(first.labelled + second.labelled) == list(range(22))
        assert faults(str(disk)) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], capture_output=True, check=False)


def flipped(content: bytes) -> bytes:
    found = bytearray(content)
    found[len(found) // 3] ^= 1
    return bytes(found)


def changed(place: Place, name: str, content: bytes, *, trusted: bool) -> None:
    """Replace a part; `trusted`: with its checksum in the manifest."""
    import hashlib

    place.write(name, content)
    if trusted:
        manifest = json.loads(place.read("manifest.json") or b"")
        for part in manifest["parts"]:
            if part["file"] == name:
                part["sha256"] = hashlib.sha256(content).hexdigest()
        place.write("manifest.json", json.dumps(manifest).encode())


def foreign(place: Place, name: str, tmp_path: Path, numbers: range, teacher: str) -> None:
    store = Teacher(teacher).label(tmp_path / "foreign", str(tmp_path / "other"), numbers)
    part = store.manifest["parts"][1]
    assert part["rows"] == PART
    changed(place, name, (store.folder / part["file"]).read_bytes(), trusted=True)


DAMAGES: dict[str, tuple[Callable[[Place, str, Path], object], str]] = {
    "truncated": (
        lambda place, name, _: place.write(name, (place.read(name) or b"")[:-9]), "does not have the checksum"),
    "flipped": (
        lambda place, name, _: place.write(name, flipped(place.read(name) or b"")), "does not have the checksum"),
    "gone": (lambda place, name, _: place.remove(name), "is missing"),
    "of another teacher": (
        lambda place, name, root: foreign(place, name, root, range(22), "judge 2"), "holds labels of another teacher"),
    "of another pool": (
        lambda place, name, root: foreign(place, name, root, range(30), "judge"),
        "holds labels of another set of pairs"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize(("address", "repaired"), [("s3", False), ("disk", True)], indirect=["address"])
def test_a_bad_part_is_named_and_its_pairs_alone_are_labelled_again(
    name: str, repaired: bool, address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Teacher().label(tmp_path / "one", address)
    place = the_store(address)
    part = parts_of(place)[1]
    damage, expected = DAMAGES[name]
    damage(place, part, tmp_path)
    (found,) = faults(address)
    assert found.startswith(f"{place}/{part} ")
    assert expected in found
    if repaired:
        (done,) = SharedLabels(address).repair()
        assert (str(done.folder), done.dropped, done.missing) == (str(place), PART, PART)
        assert faults(address) == []
        assert part not in place.names()
        assert "step.json" not in place.names()  # a store that has it is whole
        assert SharedLabels(address).repair() == []
    second = Teacher()
    second.label(tmp_path / "two", address)
    assert len(second.labelled) == PART
    assert repaired or expected in caplog.text
    assert faults(address) == []
    third = Teacher()
    third.label(tmp_path / "three", address)
    assert third.labelled == []


MANIFESTS = {
    "half of it": b'{"format": 2, "header": {"cla',
    "a part elsewhere": json.dumps(
        {
            "format": 2, "header": {"teacher": "judge", "classes": 2, "dtype": "float32"}, "rows": 1,
            "parts": [{"file": "../../victim", "rows": 1, "sha256": "0"}],
        }
    ).encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_damaged_manifest_is_refused_until_it_is_repaired(name: str, address: str, tmp_path: Path) -> None:
    Teacher().label(tmp_path / "one", address)
    the_store(address).write("manifest.json", MANIFESTS[name])
    with pytest.raises(LabelError, match=f"tmkd labels repair --labels {address}"):
        Teacher().label(tmp_path / "two", address)
    (found,) = faults(address)
    assert "manifest.json cannot be read, or is not whole" in found
    (done,) = SharedLabels(address).repair()
    assert str(done.folder).startswith(address)
    assert all((Place.at(address) / name).names() == [] for name in Place.at(address).names())
    again = Teacher()
    again.label(tmp_path / "one", address)  # its workspace still has them all
    assert again.labelled == []
    other = Teacher()
    other.label(tmp_path / "two", address)
    assert other.labelled == []


def test_small_parts_are_merged_there_too(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tmkd.pipeline.store.label_store.MERGED", 4)
    store = Teacher().label(tmp_path / "one", address)
    place = the_store(address)
    assert parts_of(place) == sorted(path.name for path in store.folder.glob("part-*"))
    assert len(parts_of(place)) < 4
    assert faults(address) == []


def test_parts_of_a_killed_writer_are_removed(address: str, tmp_path: Path) -> None:
    with pytest.raises(TmkdError):
        Teacher(stops_after=10).label(tmp_path / "one", address)
    place = the_store(address)
    place.write("part-00007-0123456789ab.parquet", b"the manifest does not name it yet")
    place.write(".part-00008-0123456789ab.parquet.0123456789abcdef.tmp", b"half of it")
    Teacher().label(tmp_path / "two", address)
    assert not any("0123456789ab" in name for name in place.names())


def test_the_workspaces_own_steps_are_no_shared_address(tmp_path: Path) -> None:
    with pytest.raises(TmkdError, match="lies in the workspace's steps"):
        Workspace(tmp_path, labels=Place.at(tmp_path / "steps"))


def test_the_command_line(address: str, tmp_path: Path, tmkd: Tmkd, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, rows in {"train": pair_rows(2), "dev": pair_rows(1), "pool": pool_rows()}.items():
        write_jsonl(tmp_path / f"{part}.jsonl", [{**row, "question": f"{part}: {row['question']}"} for row in rows])
    tiny("bert", tmp_path / "encoder")
    recipe = {
        "name": "tiny", "encoder": str(tmp_path / "encoder"), "max_length": 64, "precision": "fp32",
        "data": {part: str(tmp_path / f"{part}.jsonl") for part in ("train", "dev", "pool")},
        "teachers": [{"name": "a", "epochs": 1}], "student": {"layers": 1}, "methods": ["tkd"], "take": "tkd",
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    tmkd("label", tmp_path / "recipe.yaml", "-w", tmp_path / "one", "--labels", address)
    stores = json.loads(tmkd("labels", "show", "--labels", address, "--json").stdout)["stores"]
    assert len(stores) >= 2
    assert all(one["model"] == "a" and one["labelled"] == one["pairs"] and one["finished"] for one in stores)

    def never(*given: object) -> None:
        raise AssertionError("labelled again")

    monkeypatch.setattr(label_module, "_scored", never)
    monkeypatch.setenv("TMKD_LABELS", address)
    tmkd("label", tmp_path / "recipe.yaml", "-w", tmp_path / "two")
    monkeypatch.delenv("TMKD_LABELS")

    folder = stores[0]["folder"]
    place = Place.at(folder)
    part = parts_of(place)[0]
    place.write(part, b"")
    bad = tmkd("labels", "verify", "--labels", address, check=False)
    assert bad.returncode == 1
    assert bad.stdout.startswith(f"{folder}/{part} does not have the checksum")
    assert f"dropped {stores[0]['labelled']} labels of {folder}" in tmkd("labels", "repair", "--labels", address).stdout
    assert tmkd("labels", "verify", "--labels", address).stdout == ""
    both = tmkd("labels", "show", tmp_path / "one" / "runs" / "tiny", "--labels", address, check=False)
    assert both.returncode == 2
    assert "give a run or --labels" in both.stderr
