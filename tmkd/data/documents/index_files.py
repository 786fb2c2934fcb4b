"""The files of a passage index: they are opened for reading or writing, and made where there are none.

`tmkd-index.json` says the format; the others are Tantivy's.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tmkd.core.errors import DataError, first_line
from tmkd.core.files import digest_of, read_json, write_json
from tmkd.core.open_files import require_room
from tmkd.data.documents.bm25 import TOKENIZER, import_tantivy, use_tokenizer

FORMAT = 2  # of the index: raise it when older indexes can no longer be read
CARD = "tmkd-index.json"
_HEAP = 128 << 20


def _schema(tantivy: Any) -> Any:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("text", tokenizer_name=TOKENIZER)
    builder.add_text_field("headings", tokenizer_name=TOKENIZER)
    builder.add_text_field("document", tokenizer_name="raw", index_option="basic")
    builder.add_text_field("pid", tokenizer_name="raw", index_option="basic")
    builder.add_unsigned_field("role", indexed=True)
    builder.add_bytes_field("stored", stored=True)
    return builder.build()


def version_of(folder: Path) -> str:
    """A digest of the files that hold the passages, which change with the passages alone; empty if it is no index."""
    try:
        return digest_of(read_json(folder / "meta.json")["segments"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def links_to(folder: Path) -> TemporaryDirectory[str]:
    """A folder of links to an index in a read-only folder; the library writes a lock file beside what it opens."""
    links = TemporaryDirectory(prefix="tmkd-index-")
    for path in folder.glob("*") if folder.is_dir() else ():
        if path.suffix != ".lock":
            Path(links.name, path.name).symlink_to(path.resolve())
    return links


def let_others_read(folder: Path) -> None:
    """Give two files of the index the mode that its other files have; the library lets only their owner read them."""
    mode = (folder / CARD).stat().st_mode & 0o777
    for name in ("meta.json", ".managed.json"):
        with suppress(OSError):
            (folder / name).chmod(mode)


def open_files(folder: Path, links: Path | None = None) -> Any:
    """Open an index as Tantivy's object, which shows what it held then.

    Args:
        folder: the index.
        links: a folder of links to it, as `links_to` makes it; its files are opened through them.

    Raises:
        DataError: there is no index, or it is damaged or of another format.
    """
    tantivy = import_tantivy()
    card = folder / CARD
    how = f"make one with: tmkd index DOCS --out {folder}"
    if not card.is_file():
        if folder.exists():
            raise DataError(f"{folder} {'holds no index' if folder.is_dir() else 'is a file, no index'}; name another")
        raise DataError(f"{folder} is not there; {how}")
    try:
        written = read_json(card)["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{card} is damaged ({type(error).__name__}: {error}); remove {folder} and {how}") from error
    if written != FORMAT:
        raise DataError(f"{folder} is an index of format {written!r}, this version reads {FORMAT}; remove it and {how}")
    try:
        index = use_tokenizer(tantivy.Index.open(str(links or folder)))
        index.config_reader(reload_policy="manual")
        index.reload()
    except Exception as error:  # the library raises bare exceptions of many kinds
        require_room(error, folder)
        reason = first_line(error)
        if "ermission" in reason:
            raise DataError(f"the index {folder} cannot be opened ({reason}); check who owns its files") from error
        raise DataError(f"the index {folder} cannot be opened ({reason}); remove the folder and {how}") from error
    return index


def create_files(folder: Path) -> Any:
    """Open the index for writing; make it if there is none.

    Raises:
        DataError: as `open_files`, or the folder holds something else.
    """
    tantivy = import_tantivy()
    if (folder / CARD).is_file() and (folder / "meta.json").is_file():
        return open_files(folder)
    if not (folder / CARD).is_file() and folder.exists():  # a card without an index: the first call was killed early
        others = [] if not folder.is_dir() else [one for one in folder.iterdir() if not one.name.startswith(CARD)]
        if others or not folder.is_dir():
            raise DataError(f"{folder} is there already and holds no index; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CARD, {"format": FORMAT})
    tantivy.Index(_schema(tantivy), str(folder))
    return open_files(folder)


def unwritable(folder: Path, error: ValueError) -> DataError:
    """What to raise for an error of the disk, which the library raises as a `ValueError`."""
    free = shutil.disk_usage(folder).free >> 20
    return DataError(
        f"the index {folder} cannot be written ({first_line(error)}; {free:,} MiB free on its disk); it is as "
        "it was. Free some space, or name another folder"
    )


def open_writer(index: Any, folder: Path) -> Any:
    """Tantivy's writer; there can be one at a time.

    Raises:
        DataError: another process has one.
    """
    try:
        return index.writer(_HEAP, num_threads=1)
    except ValueError as error:
        if "lock" not in str(error).lower():
            raise
        raise DataError(
            f"another process is writing to the index {folder}; wait for it, or name another folder"
        ) from error
