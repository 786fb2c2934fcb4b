"""Answers to questions from an index of documents, without PyTorch: an exported student ranks retrieved passages.

Example:
    >>> answerer = QuestionAnswerer.open("workspace/runs/demo/export", "workspace/index")  # doctest: +SKIP
    >>> answerer.ask("How do I sort a hash by value?").answers[0].text  # doctest: +SKIP
    'To sort a hash by value, ...'
"""

from tmkd.data.documents.index import DocumentIndex
from tmkd.inference.qa.answer import Answer, Answers, PairScorer, QuestionAnswerer
from tmkd.inference.qa.calibration import Calibration

__all__ = ["Answer", "Answers", "Calibration", "DocumentIndex", "PairScorer", "QuestionAnswerer"]
