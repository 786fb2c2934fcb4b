"""Questions to answers: passages retrieved from an index, ranked and marked by an exported student, without PyTorch.

answerer = QuestionAnswerer.open(Path("workspace/runs/demo/export"), Path("workspace/index"))
answers = answerer.ask("How do I sort a hash by value?")
answers.answers[0].text
"""

from tmkd.data.documents.index import DocumentIndex
from tmkd.inference.qa.answer import Answer, Answers, PairScorer, QuestionAnswerer
from tmkd.inference.qa.calibration import Calibration

__all__ = ["Answer", "Answers", "Calibration", "DocumentIndex", "PairScorer", "QuestionAnswerer"]
