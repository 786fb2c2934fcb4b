"""The Python API: everything that the command line does, and the parts to do it with.

Example:
    import tmkd

    run = tmkd.Run(tmkd.load_recipe("recipes/demo.yaml"), workspace="workspace")
    done = run.run()  # or step by step: teach, label, pretrain, distill, export, report
    scorer = tmkd.Scorer(done.export)
    scorer.scores(["how do I mount a disk?"], ["Use the mount command ..."])

All names are attributes of `tmkd`. Each is imported when it is first used, so `import tmkd` takes no time and
`tmkd.Scorer` needs no PyTorch. `examples/` holds short programs that use them.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmkd.core.errors import needs_extra

if TYPE_CHECKING:
    __version__: str

    from tmkd.config.load import load_recipe as load_recipe
    from tmkd.config.pool_sections import Pool as Pool
    from tmkd.config.pool_sections import PoolSource as PoolSource
    from tmkd.config.pool_sections import ReadyPairs as ReadyPairs
    from tmkd.config.pool_sections import Texts as Texts
    from tmkd.config.recipe import Recipe as Recipe
    from tmkd.config.sections import Bilstm as Bilstm
    from tmkd.config.sections import Columns as Columns
    from tmkd.config.sections import Data as Data
    from tmkd.config.sections import DebianDocsSizes as DebianDocsSizes
    from tmkd.config.sections import Export as Export
    from tmkd.config.sections import HoldOut as HoldOut
    from tmkd.config.sections import Loss as Loss
    from tmkd.config.sections import Stage1 as Stage1
    from tmkd.config.sections import Stage2 as Stage2
    from tmkd.config.sections import Training as Training
    from tmkd.config.student_sections import Cached as Cached
    from tmkd.config.student_sections import StudentShape as StudentShape
    from tmkd.config.teacher_sections import Teacher as Teacher
    from tmkd.core.cluster import Cluster as Cluster
    from tmkd.core.errors import ClusterError as ClusterError
    from tmkd.core.errors import DataError as DataError
    from tmkd.core.errors import Diverged as Diverged
    from tmkd.core.errors import EncoderError as EncoderError
    from tmkd.core.errors import EndpointError as EndpointError
    from tmkd.core.errors import ExportError as ExportError
    from tmkd.core.errors import FetchError as FetchError
    from tmkd.core.errors import LabelError as LabelError
    from tmkd.core.errors import MissingExtraError as MissingExtraError
    from tmkd.core.errors import NoRoomError as NoRoomError
    from tmkd.core.errors import PlaceError as PlaceError
    from tmkd.core.errors import RecipeError as RecipeError
    from tmkd.core.errors import TmkdError as TmkdError
    from tmkd.data.corpus_pool.mine import MinedPool as MinedPool
    from tmkd.data.corpus_pool.mine import mine_pool as mine_pool
    from tmkd.data.corpus_pool.retrieve import Mining as Mining
    from tmkd.data.documents.document_rows import Fields as Fields
    from tmkd.data.documents.index import Changes as Changes
    from tmkd.data.documents.index import DocumentIndex as DocumentIndex
    from tmkd.data.documents.reader import Reading as Reading
    from tmkd.data.pairs import Pairs as Pairs
    from tmkd.data.rows import read_pairs as read_pairs
    from tmkd.data.scored_rows import import_scores as import_scores
    from tmkd.evaluation.multi_task import MultiTaskResults as MultiTaskResults
    from tmkd.evaluation.results import Results as Results
    from tmkd.inference.qa.answer import Answer as Answer
    from tmkd.inference.qa.answer import Answers as Answers
    from tmkd.inference.qa.answer import QuestionAnswerer as QuestionAnswerer
    from tmkd.inference.qa.calibrate import CalibrationResult as CalibrationResult
    from tmkd.inference.qa.calibrate_export import calibrate_export as calibrate_export
    from tmkd.inference.qa.calibration import Calibration as Calibration
    from tmkd.inference.score_file import ScoredFile as ScoredFile
    from tmkd.inference.score_file import score_file as score_file
    from tmkd.inference.scorer import Scorer as Scorer
    from tmkd.inference.state_store import StateStore as StateStore
    from tmkd.inference.state_update import IndexChanges as IndexChanges
    from tmkd.inference.state_update import StateChanges as StateChanges
    from tmkd.pipeline.label_export import export_labels as export_labels
    from tmkd.pipeline.labels import WorkspaceLabels as WorkspaceLabels
    from tmkd.pipeline.results import DistillResult as DistillResult
    from tmkd.pipeline.results import ExportResult as ExportResult
    from tmkd.pipeline.results import LabelResult as LabelResult
    from tmkd.pipeline.results import PretrainResult as PretrainResult
    from tmkd.pipeline.results import RunResult as RunResult
    from tmkd.pipeline.results import TeachResult as TeachResult
    from tmkd.pipeline.run import Run as Run
    from tmkd.pipeline.shared_checks import SharedLabels as SharedLabels
    from tmkd.pipeline.store.label_store import LabelStore as LabelStore
    from tmkd.pipeline.store.workspace import Busy as Busy
    from tmkd.pipeline.store.workspace import UnusedFolder as UnusedFolder
    from tmkd.pipeline.study.results import StudyResults as StudyResults
    from tmkd.pipeline.study.run import StudyListing as StudyListing
    from tmkd.pipeline.study.run import list_study as list_study
    from tmkd.pipeline.study.run import run_study as run_study
    from tmkd.teachers.encoder import EncoderTeacher as EncoderTeacher
    from tmkd.teachers.interface import TeacherLike as TeacherLike
    from tmkd.teachers.scores import ScoresTeacher as ScoresTeacher

__all__ = [
    "Answer",
    "Answers",
    "Bilstm",
    "Busy",
    "Cached",
    "Calibration",
    "CalibrationResult",
    "Changes",
    "Cluster",
    "ClusterError",
    "Columns",
    "Data",
    "DataError",
    "DebianDocsSizes",
    "DistillResult",
    "Diverged",
    "DocumentIndex",
    "EncoderError",
    "EncoderTeacher",
    "EndpointError",
    "Export",
    "ExportError",
    "ExportResult",
    "FetchError",
    "Fields",
    "HoldOut",
    "IndexChanges",
    "LabelError",
    "LabelResult",
    "LabelStore",
    "Loss",
    "MinedPool",
    "Mining",
    "MissingExtraError",
    "MultiTaskResults",
    "NoRoomError",
    "Pairs",
    "PlaceError",
    "Pool",
    "PoolSource",
    "PretrainResult",
    "QuestionAnswerer",
    "Reading",
    "ReadyPairs",
    "Recipe",
    "RecipeError",
    "Results",
    "Run",
    "RunResult",
    "ScoredFile",
    "Scorer",
    "ScoresTeacher",
    "SharedLabels",
    "Stage1",
    "Stage2",
    "StateChanges",
    "StateStore",
    "StudentShape",
    "StudyListing",
    "StudyResults",
    "TeachResult",
    "Teacher",
    "TeacherLike",
    "Texts",
    "TmkdError",
    "Training",
    "UnusedFolder",
    "WorkspaceLabels",
    "__version__",
    "build_index",
    "build_states",
    "calibrate_export",
    "check_states",
    "clean_workspace",
    "compare_tasks",
    "describe_recipe",
    "export_labels",
    "import_scores",
    "list_study",
    "load_recipe",
    "mine_pool",
    "read_pairs",
    "run_study",
    "score_file",
    "start_server",
]

_HOMES = {
    "tmkd.config.load": ["load_recipe"], "tmkd.config.recipe": ["Recipe"],
    "tmkd.config.pool_sections": ["Pool", "PoolSource", "ReadyPairs", "Texts"],
    "tmkd.config.sections": [
        "Bilstm", "Columns", "Data", "DebianDocsSizes", "Export", "HoldOut", "Loss", "Stage1", "Stage2", "Training",
    ],
    "tmkd.config.student_sections": ["Cached", "StudentShape"], "tmkd.config.teacher_sections": ["Teacher"],
    "tmkd.core.cluster": ["Cluster"],
    "tmkd.core.errors": [
        "ClusterError", "DataError", "Diverged", "EncoderError", "EndpointError", "ExportError", "FetchError",
        "LabelError", "MissingExtraError", "NoRoomError", "PlaceError", "RecipeError", "TmkdError",
    ],
    "tmkd.data.corpus_pool.mine": ["MinedPool", "mine_pool"], "tmkd.data.corpus_pool.retrieve": ["Mining"],
    "tmkd.data.documents.index": ["Changes", "DocumentIndex"],
    "tmkd.data.documents.document_rows": ["Fields"], "tmkd.data.documents.reader": ["Reading"],
    "tmkd.data.pairs": ["Pairs"], "tmkd.data.rows": ["read_pairs"], "tmkd.data.scored_rows": ["import_scores"],
    "tmkd.evaluation.multi_task": ["MultiTaskResults"], "tmkd.evaluation.results": ["Results"],
    "tmkd.inference.qa.answer": ["Answer", "Answers", "QuestionAnswerer"],
    "tmkd.inference.qa.calibrate": ["CalibrationResult"],
    "tmkd.inference.qa.calibrate_export": ["calibrate_export"], "tmkd.inference.qa.calibration": ["Calibration"],
    "tmkd.inference.score_file": ["ScoredFile", "score_file"],
    "tmkd.inference.scorer": ["Scorer"], "tmkd.inference.state_store": ["StateStore"],
    "tmkd.inference.state_update": ["IndexChanges", "StateChanges"],
    "tmkd.pipeline.label_export": ["export_labels"], "tmkd.pipeline.labels": ["WorkspaceLabels"],
    "tmkd.pipeline.results": [
        "DistillResult", "ExportResult", "LabelResult", "PretrainResult", "RunResult", "TeachResult",
    ],
    "tmkd.pipeline.run": ["Run"], "tmkd.pipeline.shared_checks": ["SharedLabels"],
    "tmkd.pipeline.store.label_store": ["LabelStore"],
    "tmkd.pipeline.store.workspace": ["Busy", "UnusedFolder"],
    "tmkd.pipeline.study.results": ["StudyResults"],
    "tmkd.pipeline.study.run": ["StudyListing", "list_study", "run_study"],
    "tmkd.teachers.encoder": ["EncoderTeacher"], "tmkd.teachers.interface": ["TeacherLike"],
    "tmkd.teachers.scores": ["ScoresTeacher"],
}  # fmt: skip
"""The names that are imported when they are first used, by the module that defines them."""


def __getattr__(name: str) -> Any:
    if name == "__version__":  # the only source of the version is pyproject.toml
        from importlib.metadata import version

        return version("tmkd")
    for module, names in _HOMES.items():
        if name in names:
            with needs_extra("train"):  # what the other extras bring is imported where it is needed
                return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'tmkd' has no attribute {name!r}")


def describe_recipe() -> str:
    """Every key of a recipe, a line each: its type, its default and its meaning."""
    from tmkd.config.load import describe

    return describe()


def compare_tasks(runs: Sequence[str | Path], method: str = "tmkd") -> MultiTaskResults:
    """Compare a method with the others over several tasks.

    Args:
        runs: folders of finished runs, or their results.json, each of another task; `FOLDER=METRIC` chooses the metric
            that the task counts by.
        method: the method that is compared with the others.

    Raises:
        DataError: a run that is not finished, or tasks that cannot be compared.
    """
    from tmkd.evaluation.multi_task import MultiTaskResults, TaskResult

    return MultiTaskResults.of([TaskResult.read(str(run)) for run in runs], method)


def clean_workspace(
    workspace: str | Path = "workspace", *, remove: bool = False, tokens: bool = False
) -> list[UnusedFolder]:
    """Find the folders of a workspace that no run and no study needs.

    Args:
        workspace: the workspace.
        remove: remove the folders too.
        tokens: count the cache `tokens/` as unused: token ids, mapped pools, embeddings, pairs that endpoints refused.

    Raises:
        TmkdError: the folder is no workspace.
        Busy: another process works in it.
    """
    with needs_extra("train"):
        from tmkd.pipeline.store.workspace import Workspace

    return Workspace(Path(workspace)).clean(remove=remove, tokens=tokens)


def build_index(
    documents: Sequence[str | Path],
    folder: str | Path,
    reading: Reading | None = None,
    *,
    model: str | Path | None = None,
    **computing: Any,
) -> IndexChanges:
    """Index documents, or bring an index up to date: afterwards it holds these documents and no others.

    Args:
        documents: files and folders (HTML, Markdown, text, POD, JSON lines, Parquet, BEIR), or `debian-docs`.
        folder: the index; it is made where there is none.
        reading: fields of JSON lines, addresses and limits; the usual ones unless given.
        model: an export of a student of the kind `cached`, to compute the states of the passages with.
        computing: `backend` and `threads`, as for `build_states`.

    Raises:
        ExportError: a model that cannot be used; the index is as it was.
        DataError: nothing to index, or (`Reading.strict`) a document that cannot be read; the index is as it was. Or
            another backend computed the states that are there; no states are computed, the documents are indexed.
        FetchError: `debian-docs` cannot be fetched.
        MissingExtraError: the index needs a package that is not installed.
    """
    from tmkd.data.builtin.corpus import CORPORA
    from tmkd.data.documents.reader import Reading, index_documents
    from tmkd.inference.state_update import with_states
    from tmkd.inference.text_encoder import TextEncoder

    encoder = None if model is None else TextEncoder.open(model, index=folder, **computing)
    changes = index_documents(list(documents), Path(folder), reading or Reading(), corpora=CORPORA)
    return with_states(changes, folder, encoder)


def build_states(folder: str | Path, model: str | Path, **computing: Any) -> StateChanges:
    """Compute the states of an index's passages that have none, and drop those of passages that are gone.

    Args:
        folder: the index.
        model: an export of a student of the kind `cached`.
        computing: `backend`, one of the export's or `auto`, and `threads`.

    Raises:
        ExportError: a model that cannot be used, or of another kind.
        DataError: no index, one whose states another process is computing, or one that has new passages and states that
            another backend computed.
        NoRoomError: the disk is full; what was finished is kept.
    """
    from tmkd.inference.state_update import update_states
    from tmkd.inference.text_encoder import TextEncoder

    return update_states(folder, TextEncoder.open(model, index=folder, **computing))


def check_states(folder: str | Path) -> StateStore:
    """Compare everything that is stored of an index's passages with its checksums.

    Args:
        folder: the index.

    Returns:
        The states, open for reading.

    Raises:
        DataError: no states, or damaged ones; the message names the command that computes them.
    """
    from tmkd.inference.state_store import StateStore

    store = StateStore.open(folder, None)
    store.check()
    return store


def start_server(model: str | Path, **settings: Any) -> None:
    """Serve an export over HTTP until the process is stopped.

    Args:
        model: the export.
        settings: as `tmkd serve` takes them, such as `port=8080` (`tmkd.serve.settings.Settings` lists them).

    Raises:
        TmkdError: a setting, or the export, cannot be used.
        MissingExtraError: the extra `serve` is not installed.
    """
    with needs_extra("serve"):
        from tmkd.serve.run import run
        from tmkd.serve.settings import settings_of

    run(settings_of({"model": Path(model), **settings}))
