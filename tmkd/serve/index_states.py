"""The stored states of an index, for the scorer of a cached student; read anew where `tmkd index` has updated them."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from tmkd.core.errors import DataError
from tmkd.inference.cached_reader import of_other_backend
from tmkd.inference.scorer import Scorer
from tmkd.inference.state_card import CARD, FOLDER
from tmkd.inference.state_store import StateStore, has_states
from tmkd.serve.watched import Watched

logger = logging.getLogger(__name__)


class IndexStates:
    """Attaches the states of an index's passages to a scorer. Threads may share it.

    An index without states is no problem: those of its passages are then computed, and cached.

    Args:
        scorer: Of a cached student.
        index: The index's folder.

    Attributes:
        problem: Why the states that were there at the start cannot be used, such as "... of another model"; empty where
            they are used, or there were none.
    """

    def __init__(self, scorer: Scorer, index: Path) -> None:
        self._scorer, self._index = scorer, index
        self._store: StateStore | None = None
        self._lock = threading.Lock()
        self._watched = Watched(index / FOLDER / CARD)
        self.problem = self._read() if has_states(index) else ""

    def look(self) -> None:
        """Read the states again where they were updated.

        States that cannot be used are said once, in the log; those that were read before stay in use.
        """
        if not self._watched.due or not self._lock.acquire(blocking=False):
            return  # the other job is at it, and this one uses what is there
        try:
            version = self._watched.changed()
            if version is not None and any(version):  # states that were removed stay in use
                self._watched.seen = version
                if problem := self._read():
                    kept = "it computes all states" if self._store is None else "it uses those that it read before"
                    logger.warning(f"the scorer cannot use the updated states, so {kept}: {problem}")
        finally:
            self._lock.release()

    def _read(self) -> str:
        """Attach the states, or read them again; gives the problem in words, or an empty text."""
        encoder = self._scorer.text_encoder
        assert encoder is not None
        try:
            if self._store is None:
                store = StateStore.open(self._index, encoder.identity, model=encoder.folder)
                self._scorer.attach(store)
                self._store = store
            else:
                before = self._store.card.backends
                self._store.refresh()
                if self._store.card.backends != before and (said := of_other_backend(self._store, encoder.backend)):
                    logger.warning(said)
        except DataError as error:
            return str(error)
        return ""
