"""Folders at addresses: a real S3 server, a disk; every error names the address and what to do, and no key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from places_fixtures import KEYS, Proxy, bucket, proxy, s3_port, the_proxy
from s3fs import S3FileSystem

from tmkd.core.errors import MissingExtraError, PlaceError
from tmkd.core.places import Place

__all__ = ["bucket", "proxy", "s3_port", "the_proxy"]


@pytest.mark.parametrize("kind", ["s3", "file", "path"])
def test_files_are_written_read_listed_and_removed(kind: str, bucket: str, tmp_path: Path) -> None:
    root = {"s3": f"s3://{bucket}/deep/down", "file": f"file://{tmp_path}/deep", "path": str(tmp_path / "deep")}[kind]
    place = Place.at(root) / "store"
    assert (place.name, str(place)) == ("store", f"{root}/store")
    assert place.names() == []
    assert place.read("a") is None
    place.remove("a")
    assert place.create("a", b"1")
    assert not place.create("a", b"2")
    assert place.read("a") == b"1"
    place.write("a", b"3")
    (place / "more").write("b", b"")
    assert Place.at(root + "/").names() == ["store"]
    assert place.names() == ["a", "more"]
    assert (place.read("a"), (place / "more").read("b")) == (b"3", b"")
    place.remove("a")
    assert place.names() == ["more"]


REFUSALS = {
    (403, "ExpiredToken"): "the credentials have expired; renew them",
    (400, "ExpiredToken"): "the credentials have expired; renew them",
    (403, "InvalidAccessKeyId"): "the credentials are not accepted; look at AWS_ACCESS_KEY_ID",
    (403, "AccessDenied"): "the credentials do not allow it",
    (507, "XMinioStorageFull"): "there is no room; free some, or raise the quota",
    (403, "QuotaExceeded"): "there is no room",
    (503, "ServiceUnavailable"): "the server has a fault or is overloaded, after retries",
    (418, "Teapot"): "no",
}


@pytest.mark.parametrize(("status", "code"), REFUSALS)
def test_what_a_server_refuses_is_said_in_words(status: int, code: str, proxy: Proxy, bucket: str) -> None:
    place = Place.at(f"s3://{bucket}/tmkd")
    place.write("a", b"1")
    proxy.refuse = lambda method, path: (status, code)
    for call in (lambda: place.write("b", b"2"), lambda: place.read("a"), lambda: place.names()):
        with pytest.raises(PlaceError, match=REFUSALS[status, code]) as found:
            call()
        assert f"s3://{bucket}/tmkd" in str(found.value)
        assert found.value.address is not None
        assert not re.search("|".join(list(KEYS.values())[:3]), str(found.value))


def test_a_bucket_that_is_not_there_is_no_empty_folder(proxy: Proxy) -> None:
    place = Place.at("s3://no-such-bucket/tmkd")
    for call in (lambda: place.write("b", b"2"), lambda: place.read("a"), lambda: place.names()):
        with pytest.raises(PlaceError, match="there is no such bucket; make it, or name another"):
            call()


def test_a_server_that_is_gone(proxy: Proxy, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(PlaceError, match=r"the server does not answer, after retries; look at .* AWS_ENDPOINT_URL"):
        Place.at(f"s3://{bucket}").read("a")
    S3FileSystem.clear_instance_cache()


def test_without_keys(proxy: Proxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(PlaceError, match="there are no credentials; set AWS_ACCESS_KEY_ID"):
        Place.at(f"s3://{bucket}").write("a", b"")
    S3FileSystem.clear_instance_cache()


def test_retries_after_a_fault_that_passes(proxy: Proxy, bucket: str) -> None:
    faults = iter([(500, "InternalError")])
    proxy.refuse = lambda method, path: next(faults, None)
    place = Place.at(f"s3://{bucket}/tmkd")
    place.write("a", b"1")
    assert next(faults, None) is None  # it was met
    assert place.read("a") == b"1"


def test_addresses_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(PlaceError, match=r"s4://b/x cannot be opened \(Protocol not known: s4\)"):
        Place.at("s4://b/x")
    with pytest.raises(PlaceError, match="must not hold keys") as found:
        Place.at("s3://key:secret@bucket/x")
    assert "secret" not in str(found.value)
    with pytest.raises(MissingExtraError, match="Please install gcsfs"):
        Place.at("gs://bucket/x")
    (tmp_path / "file").write_text("")
    with pytest.raises(PlaceError, match="file/a cannot be read: Not a directory"):
        Place.at(tmp_path / "file").read("a")


def test_a_file_is_one_request(proxy: Proxy, bucket: str) -> None:
    place = Place.at(f"s3://{bucket}/tmkd")
    place.write("a", b"1")
    assert place.read("a") == b"1"
    assert proxy.seen == [("PUT", f"/{bucket}/tmkd/a"), ("GET", f"/{bucket}/tmkd/a")]
