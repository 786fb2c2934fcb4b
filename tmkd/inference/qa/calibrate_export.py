"""Calibrate an export on labelled pairs of a file, or on the questions of debian-docs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tmkd.core.files import Quoting
from tmkd.data.documents.text import question_key
from tmkd.inference.manifest import read_manifest
from tmkd.inference.qa.answer import QuestionAnswerer
from tmkd.inference.qa.calibrate import CalibrationResult, calibrate
from tmkd.inference.qa.calibration import Calibration
from tmkd.inference.qa.cases import Material, built_in, from_file

logger = logging.getLogger(__name__)


def calibrate_export(
    model: str | Path, index: str | Path, *, pairs: str | Path | None = None, test: str | Path | None = None,
    risk: float | None = None, candidates: int = 100, quoting: Quoting = "auto", **scoring: Any,
) -> CalibrationResult:  # fmt: skip
    """Choose an export's temperature, no-answer threshold, retrieval weights and share of dense search.

    They are written into the export, as calibration.json.

    Args:
        model: the export.
        index: the index whose passages answer the questions.
        pairs: a file of labelled pairs that the choice is made on; the questions of debian-docs unless given.
        test: a file of labelled pairs of other questions, on which the choice is only measured.
        risk: the largest share of wrong answers; the threshold with the best F1 unless given.
        candidates: passages that are retrieved and ranked for a question.
        quoting: what a quote in a CSV or TSV file means: `none`, `csv`, or `auto` for what the file shows.
        scoring: `backend` and `threads`, as for `Scorer`.

    Raises:
        ValueError: `test` without `pairs`.
        DataError: pairs that cannot be used, or a risk that no threshold keeps.
        ExportError: an export that cannot be used.
    """
    if test is not None and pairs is None:
        raise ValueError("test pairs without development pairs; debian-docs brings test questions of its own")
    answerer = QuestionAnswerer.open(model, index, calibration=Calibration(), **scoring)
    positive = read_manifest(model).positive
    given = [Path(file) for file in (pairs, test) if file is not None]
    files = [from_file(file, answerer.index, quoting, positive) for file in given]
    dev, *unseen = files or built_in(answerer.index)
    if unseen:
        _warn_of_shared(dev, unseen[0])
    found = calibrate(answerer, dev, unseen[0] if unseen else None, candidates=candidates, risk=risk)
    found.save(Path(model))
    return found


def _warn_of_shared(dev: Material, test: Material) -> None:
    """Warn of questions that are in both sets, in any spelling: the choice has seen them."""
    known = {question_key(case.question) for case in dev.cases}
    shared = [case.question for case in test.cases if question_key(case.question) in known]
    if shared:
        logger.warning(
            f"{test.name}: {len(shared):,} of {len(test.cases):,} questions are in {dev.name}, too, first "
            f"{shared[0]!r}: figures on them are better than on new questions"
        )
