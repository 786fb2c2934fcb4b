"""A part of a label store: a Parquet file of pair ids and logits that also says which store it belongs to.

A checksum finds a file that changed. It does not find a file of another teacher, or of other pairs, whose checksum was
put into the manifest with it; so every part carries the digest of its store's header and that of its set of pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tmkd.core.errors import LabelError, first_line
from tmkd.core.files import digest_of
from tmkd.core.open_files import require_room

NAMED = 2  # the format of a manifest from which on every part says which store it belongs to
_HEADER, _PAIRS = b"tmkd.header", b"tmkd.pairs"
_READING = "cannot be read"


@dataclass(frozen=True)
class Owner:
    """Whose labels a part holds, and what shape they have.

    Attributes:
        header: the digest of the store's header.
        pairs: the digest of the set of pairs; empty where the store was made without one.
        width: numbers for a pair.
        format: that of the store's manifest.
    """

    header: str
    pairs: str
    width: int
    format: int

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Owner:
        """The owner of the parts that a manifest names."""
        header = manifest["header"]
        width = int(header["classes"]) * int(header.get("headers", 1))
        return cls(digest_of(header), str(manifest.get("pairs", {}).get("digest", "")), width, manifest["format"])


def encode_part(pair_ids: Sequence[str] | pa.Array, logits: NDArray[np.float32], owner: Owner) -> bytes:
    """The content of a part.

    Args:
        pair_ids: the ids of N pairs.
        logits: [N, width] float32.
        owner: the store that it belongs to.
    """
    values = pa.FixedSizeListArray.from_arrays(pa.array(logits.astype(np.float32).ravel()), owner.width)
    table = pa.table({"pair_id": pa.array(pair_ids, pa.string()), "logits": values})
    table = table.replace_schema_metadata({_HEADER: owner.header.encode(), _PAIRS: owner.pairs.encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def read_part(path: Path, width: int) -> tuple[list[str], NDArray[np.float32]]:
    """The pair ids of a part, N strings, and their logits, [N, width] float32; errors as of `read_arrays`."""
    names, logits = read_arrays(path, width)
    return names.to_pylist(), logits


def read_arrays(path: Path, width: int) -> tuple[pa.Array, NDArray[np.float32]]:
    """The pair ids of a part, N strings in Arrow, and their logits, [N, width] float32.

    Raises:
        LabelError: it cannot be read.
        TmkdError: it cannot be opened because too many files are open.
    """
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        require_room(error, path)
        message = f"{path} {_READING} ({error}); run again, and its pairs are labelled again"
        raise LabelError(message, path=path) from error
    flat = table.column("logits").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return table.column("pair_id").combine_chunks(), flat.reshape(-1, width)


def what_is_wrong(folder: Path, part: Mapping[str, Any], owner: Owner) -> str:
    """Why a part cannot be used, as the end of a sentence that begins with its path; empty if it can.

    Args:
        folder: the store's folder.
        part: what its manifest says of the part: `file`, `rows`, `sha256`.
        owner: the store.

    Raises:
        TmkdError: it cannot be opened because too many files are open, and may be whole.
    """
    try:
        content = (folder / part["file"]).read_bytes()
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        require_room(error, folder / part["file"])
        return f"{_READING} ({error.strerror or error})"
    found = []
    if hashlib.sha256(content).hexdigest() != part["sha256"]:
        found.append("does not have the checksum that the manifest names")
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        return ", ".join([*found, f"is no readable Parquet file ({first_line(error)})"])
    if other := _of_another(schema.metadata or {}, owner):
        found.append(other)
    if not _fits(schema, owner.width):
        listed = ", ".join(f"{field.name}: {field.type}" for field in schema)
        found.append(f"holds {listed}, not pair_id: string, logits: fixed_size_list<float>[{owner.width}]")
    if rows != part["rows"]:
        found.append(f"has {rows:,} rows, the manifest says {part['rows']:,}")
    return ", ".join(found)


def _of_another(metadata: Mapping[bytes, bytes], owner: Owner) -> str:
    """Whether a part belongs to another store, in words."""
    if _HEADER not in metadata:
        return (
            "does not say which store it belongs to, as every part of this store does" if owner.format >= NAMED else ""
        )
    if metadata[_HEADER].decode() != owner.header:
        return "holds labels of another teacher"
    pairs = metadata.get(_PAIRS, b"").decode()
    return "holds labels of another set of pairs" if owner.pairs and pairs != owner.pairs else ""


def _fits(schema: pa.Schema, width: int) -> bool:
    if schema.names != ["pair_id", "logits"]:
        return False
    names, logits = schema.field("pair_id").type, schema.field("logits").type
    return bool(
        pa.types.is_string(names)
        and pa.types.is_fixed_size_list(logits)
        and logits.list_size == width
        and pa.types.is_float32(logits.value_type)
    )
