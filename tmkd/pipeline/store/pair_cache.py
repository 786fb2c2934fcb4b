"""Pairs of a finished step as an Arrow file that is mapped into memory, kept in the workspace's `tokens/`.

A copy of a Parquet file, without compression. This is a cache beside the steps and not a step: the folder can be
removed at any time, and no result changes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tmkd.core.console import progress
from tmkd.core.files import remove_temporary_of, replacing
from tmkd.core.open_files import require_room
from tmkd.data.arrow_file import ArrowFile, write_arrow
from tmkd.data.pairs import Pairs
from tmkd.pipeline.store.workspace import Workspace

logger = logging.getLogger(__name__)

IN_MEMORY = 65_536  # pairs that are read into memory instead: at most some dozen megabytes


def load_pairs(workspace: Workspace, path: Path) -> Pairs:
    """The pairs of a Parquet file in a step's folder, as `Pairs.load` reads them; the texts of many stay on the disk.

    Args:
        workspace: Holds the copy; one that is only read gets none.
        path: The file, which does not change.

    Raises:
        DataError: There is no such file, or it holds no table of pairs.
        NoRoomError: The disk is full.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError):
        return Pairs.load(path)  # raises what it is to raise
    with file:
        count = file.metadata.num_rows
        if count <= IN_MEMORY:
            return Pairs.load(path)
        copy = workspace.tokens / f"{path.parent.name}.arrow"
        found = _opened(copy, count)
        if found is None and workspace.mode == "read":
            return Pairs.load(path)
        if found is None:
            _write(copy, file)
            found = _opened(copy, count)
            assert found is not None
    return Pairs.mapped(found)


def _opened(path: Path, count: int) -> ArrowFile | None:
    """The file, if it is there and holds that many rows."""
    if not path.is_file():
        return None
    try:
        found = ArrowFile(path)
        if found.table.num_rows == count:
            return found
        problem = f"{found.table.num_rows:,} rows in place of {count:,}"
    except (OSError, ValueError) as error:
        require_room(error, path)
        problem = str(error)
    logger.warning(f"{path} is damaged ({problem}); it is written again")
    return None


def _write(path: Path, file: pq.ParquetFile) -> None:
    remove_temporary_of(path)
    with replacing(path) as temporary, progress("map the pairs", file.metadata.num_rows) as bar:

        def tables() -> Iterator[pa.Table]:
            for batch in file.iter_batches():
                yield pa.Table.from_batches([batch])
                bar.advance(batch.num_rows)

        write_arrow(temporary, file.schema_arrow, tables())
