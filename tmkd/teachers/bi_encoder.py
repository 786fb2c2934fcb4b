"""A teacher that is an embedding model: the similarity of the question's and the passage's embedding.

Every text is embedded once, so N pairs over M distinct texts cost M short forward passes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core.cluster import Cluster
from tmkd.core.console import progress
from tmkd.core.errors import EncoderError, first_line, named, needs_extra
from tmkd.core.files import digest_of
from tmkd.core.hardware import device
from tmkd.core.logits import two_logits
from tmkd.data.pairs import Pairs
from tmkd.models.bi_encoder import embeddings
from tmkd.models.checkpoint import require_fit
from tmkd.models.embedding_files import similarity_of
from tmkd.models.encoders.families import FAMILIES
from tmkd.models.encoders.find import find_folder, folder_fingerprint
from tmkd.models.module_files import MODULES_FILE, read_modules
from tmkd.models.own_length import own_length
from tmkd.models.quiet import without_bars
from tmkd.models.ready import SETTINGS_FILE, checkpoint_json
from tmkd.models.student import SHARPNESS
from tmkd.models.text_reader import TextReader
from tmkd.models.weights import types_of
from tmkd.teachers.embedded_texts import EmbeddedTexts, Sided
from tmkd.teachers.interface import Scored, StoredTeacher
from tmkd.teachers.on_cluster import Embed, Embedded, EmbedTexts, embed_on, embed_sides

CHUNK = 2048  # texts that are embedded between two writes of the label store
_BLOCK = 4096  # pairs whose texts are looked up together
_WAITING = 1 << 16  # pairs that wait for new texts, from which on those whose texts are embedded wait no longer
_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")  # sentence-transformers' own, of two vectors
_FORWARD = 2  # raised when our forward gives other numbers than before, so that stored labels are not taken for its own
BUILTIN_LENGTH = {"builtin:minilm-l6": 256, "builtin:mpnet": 384}
"""Tokens of a text that these models were trained with; both take the mean of the tokens, scaled to length 1."""


@dataclass(frozen=True)
class Prompts:
    """What is put before a text; None: the model's own prompt, where its files have one.

    Attributes:
        query: before a question.
        passage: before a passage.
    """

    query: str | None = None
    passage: str | None = None


@dataclass(frozen=True)
class TunedBuiltin:
    """A builtin model that was fine-tuned.

    Attributes:
        spec: which one it was, `builtin:NAME`.
        folder: its weights and tokenizer now.
    """

    spec: str
    folder: Path


class BiEncoderTeacher(StoredTeacher):
    """An embedding model as a teacher of two classes.

    Pooling, normalisation, prompts and the kind of similarity are what the model's files say. `builtin:` models are run
    by tmkd itself, fine-tuned ones too, and others by sentence-transformers.

    Example:
        >>> from tmkd.data.pairs import Pairs
        >>> teacher = BiEncoderTeacher("builtin:minilm-l6", precision="fp32")
        >>> pairs = Pairs.build(["How do I copy a file?"] * 2, ["Use the cp command.", "Apache listens on port 80."])
        >>> teacher.similarities(pairs).round(2).tolist()
        [0.48, 0.0]

    Attributes:
        spec: as given; of a fine-tuned builtin model, which one it was.
        folder: the model's folder.
        name: what messages and reports call the teacher.
        positive: the class of the right passages.
    """

    def __init__(
        self,
        spec: str | TunedBuiltin,
        *,
        name: str | None = None,
        max_length: int | None = None,
        pooling: str | None = None,
        prompts: Prompts | None = None,
        precision: str = "auto",
        positive: int = 1,
    ) -> None:
        """Find the model and check that its files say how token vectors become one.

        Args:
            spec: `builtin:NAME`, a builtin model that was fine-tuned, a folder of sentence-transformers, or a hub id.
            name: the last part of `spec` unless given.
            max_length: tokens of a text; what the model's files say unless given.
            pooling: for a model without files about pooling: mean, cls, max or lasttoken.
            prompts: in place of the model's own.
            precision: of a builtin model's arithmetic, as in a recipe.
            positive: the class of the right passages, 0 or 1.

        Raises:
            EncoderError: there is no such model, its pooling or its similarity is not known, its files name code of its
                own, or it has too few positions for `max_length`.
        """
        self._tuned = isinstance(spec, TunedBuiltin)
        self.spec = spec.spec if isinstance(spec, TunedBuiltin) else spec
        self.positive, self.pooling = positive, pooling
        self.name = name or self.spec.rstrip("/").rpartition("/")[2]
        self.max_length, self.prompts, self.precision = max_length, prompts or Prompts(), precision
        self.folder = spec.folder if isinstance(spec, TunedBuiltin) else find_folder(spec)
        if self.builtin:
            if pooling is not None:
                raise EncoderError(
                    f"{self.spec}: its pooling is known; leave out `pooling: {pooling}`", source=self.spec
                )
        else:
            _require_pooling(self.folder, pooling)
            _require_similarity(self.folder)
        if max_length is not None:
            _require_positions(self.folder, max_length)
        self._embedded = EmbeddedTexts()

    @property
    def builtin(self) -> bool:
        """Whether tmkd runs the model itself."""
        return self.spec in BUILTIN_LENGTH

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash over weights, configuration, length, pooling, prompts and, for a builtin model, precision.

        Of a model that a library runs in float32 it is another one where its files name another type: in that type it
        was run before, and those labels are not these.
        """
        prompts = [self.prompts.query, self.prompts.passage]
        about = [self.max_length, self.pooling, prompts, self.precision if self.builtin else "fp32"]
        about += [self.spec] if self._tuned else []
        about += [_FORWARD] if self.builtin else _other_types(self.folder)
        return digest_of(["bi_encoder", folder_fingerprint(self.folder), self.positive, *about])

    @property
    def reads(self) -> tuple[Path, int] | None:
        """The folder of the tokenizer, and how many tokens of a text the model reads; None if its files do not tell."""
        words = _words(self.folder)
        if not all((words / name).is_file() for name in ("config.json", "tokenizer.json")):
            return None
        return words, self.max_length or BUILTIN_LENGTH.get(self.spec) or own_length(words)

    @functools.cached_property
    def _model(self) -> Any:
        return self.library_model()

    def library_model(self) -> Any:
        """Open the model in float32 with sentence-transformers, with the teacher's maximum length and prompts.

        Raises:
            EncoderError: its files cannot be read.
            MissingExtraError: sentence-transformers is not installed.
        """
        with needs_extra("teachers"):
            from sentence_transformers import SentenceTransformer
            from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        where = {"device": str(device()), "model_kwargs": {"use_safetensors": True, "dtype": "float32"}}
        pooling = "mean" if self.builtin else self.pooling
        try:
            with without_bars():
                if pooling is None:
                    model = SentenceTransformer(str(self.folder), **options, **where)
                else:
                    words = Transformer(str(self.folder), model_kwargs=where["model_kwargs"])
                    pool = Pooling(words.get_embedding_dimension(), pooling_mode=pooling)
                    modules = [words, pool, Normalize()] if self.builtin else [words, pool]
                    model = SentenceTransformer(modules=modules, device=str(device()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
            raise EncoderError(f"{self.folder} cannot be read: {first_line(error)}", source=self.folder) from error
        model.float()  # modules that do not ask for a type, such as static embeddings
        if (length := self.max_length or BUILTIN_LENGTH.get(self.spec)) is not None:
            model.max_seq_length = length
        if self.prompts.query is not None:
            model.prompts["query"] = self.prompts.query
        if self.prompts.passage is not None:
            model.prompts["document"] = self.prompts.passage
        return model

    def _embed_builtin(self, texts: Sequence[str], prompt: str | None) -> NDArray[np.float32]:
        return embeddings(self._reader, [f"{prompt or ''}{text}" for text in texts])

    @functools.cached_property
    def _reader(self) -> TextReader:
        return TextReader(self.folder, self.max_length or BUILTIN_LENGTH[self.spec], self.precision)

    def embedder(self, side: str) -> Embed:
        """What embeds texts: questions (`side` is `query`) or passages (`document`)."""
        prompt = self.prompts.query if side == "query" else self.prompts.passage
        if self.builtin:
            return partial(self._embed_builtin, prompt=prompt)
        encode = getattr(self._model, f"encode_{side}")
        given = {} if prompt is None else {"prompt": prompt}
        return lambda texts: np.asarray(encode(list(texts), show_progress_bar=False, **given), dtype=np.float32)

    def keep_in(self, folder: Path, whole: int) -> None:
        """See `StoredTeacher`: the embeddings of texts."""
        if self._embedded.folder != folder:
            self._embedded = EmbeddedTexts(folder)

    def scored(self, pairs: Pairs, cluster: Cluster | None = None) -> Iterator[Scored]:
        """Embed the texts that are new, and give the similarity of the pairs whose texts are embedded.

        Which texts are embedded together depends on the order of the new ones alone. So labels that a process stored
        before it was killed change nothing for the next one.
        """
        chunk = CHUNK if cluster is None else CHUNK * 8 * cluster.workers
        waiting: dict[int, tuple[Sided, Sided]] = {}  # by the pair's place
        new: dict[Sided, None] = {}  # a set that keeps the order
        texts = enumerate((("query", question), ("document", passage)) for question, passage in pairs.texts())
        while block := list(itertools.islice(texts, _BLOCK)):
            missing = set(self._embedded.missing(text for _, both in block for text in both))
            for place, both in block:
                waiting[place] = both
                new |= dict.fromkeys(text for text in both if text in missing)
                if len(new) >= chunk or place == len(pairs) - 1:
                    self._embed([*new], cluster)
                    missing.difference_update(new)
                    new = {}
                    yield self._scores(waiting)
                    waiting = {}
            if len(waiting) >= _WAITING:
                ready = {place: both for place, both in waiting.items() if new.keys().isdisjoint(both)}
                waiting = {place: both for place, both in waiting.items() if place not in ready}
                if ready:
                    yield self._scores(ready)

    def _scores(self, pairs: Mapping[int, tuple[Sided, Sided]]) -> Scored:
        """The places of some pairs whose texts are embedded, and their similarities."""
        both = [(question, passage) for (_, question), (_, passage) in pairs.values()]
        return np.array([*pairs]), self._similarity(both)[:, None]

    def _embed(self, texts: Sequence[Sided], cluster: Cluster | None) -> None:
        """Embed texts that are not embedded yet."""
        if not texts:
            return
        with named(f"teacher {self.name}"):
            if cluster is not None:
                self._embed_on(cluster, texts)
            else:
                self._embedded.add(texts, embed_sides(self.embedder, *zip(*texts, strict=True)))

    def _embed_on(self, cluster: Cluster, texts: Sequence[Sided]) -> None:
        """Embed texts on a cluster, and keep them some at a time: a kill costs no more than that."""
        some: list[Embedded] = []

        def keep() -> None:
            if some:
                places, found = (np.concatenate(parts) for parts in zip(*some, strict=True))
                self._embedded.add([texts[place] for place in places.tolist()], found)
                some.clear()

        with progress("embed", len(texts), "texts") as bar:
            try:
                for places, found in embed_on(cluster, _OnWorkers(self), texts):
                    some.append((places, found))
                    bar.advance(len(places))
                    if sum(len(places) for places, _ in some) >= CHUNK:
                        keep()
            finally:
                keep()

    def _similarity(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """The similarity of pairs whose texts are embedded, [n] float32."""
        questions, passages = zip(*pairs, strict=True)
        first, second = self._embedded.of("query", questions), self._embedded.of("document", passages)
        if self.builtin:
            return np.asarray(np.einsum("nd,nd->n", first, second), dtype=np.float32)
        return np.asarray(self._model.similarity_pairwise(first, second), dtype=np.float32)

    def similarities(self, pairs: Pairs) -> NDArray[np.float32]:
        """The similarity of each pair's two texts, [N] float32."""
        return self.raw(pairs)[:, 0]

    def from_raw(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of two classes: SHARPNESS (cosine - 1/2) as log-odds; another similarity is taken as it is."""
        odds = raw[:, 0]
        if self.builtin or similarity_of(self.folder) == "cosine":
            odds = SHARPNESS * (odds - 0.5)
        return two_logits(odds if self.positive else -odds)


class _OnWorkers(EmbedTexts):
    """The same model on the workers of a cluster.

    Args:
        teacher: the teacher.
    """

    def __init__(self, teacher: BiEncoderTeacher) -> None:
        self.folder = teacher.folder
        self._builtin = teacher.spec if teacher.builtin else None
        self._keys: dict[str, Any] = {
            "name": teacher.name, "max_length": teacher.max_length, "pooling": teacher.pooling,
            "prompts": teacher.prompts, "precision": teacher.precision,
        }  # fmt: skip

    def open_model(self, folder: Path) -> Callable[[str], Embed]:
        """See `EmbedTexts`."""
        spec = str(folder) if self._builtin is None else TunedBuiltin(self._builtin, folder)
        return BiEncoderTeacher(spec, **self._keys).embedder


def _other_types(folder: Path) -> list[str]:
    """The types, float32 aside, that the configuration or else the weights of a model name."""
    modules = read_modules(folder)
    path = (modules[0].place if modules else folder) / "config.json"
    config = checkpoint_json(path) if path.is_file() else {}
    named = config.get("dtype") or config.get("torch_dtype")
    return sorted(({str(named)} if named else types_of(folder)) - {"float32", "F32"})


def _words(folder: Path) -> Path:
    """The folder of the module that reads words."""
    modules = read_modules(folder)
    return modules[0].place if modules else folder


def _require_positions(folder: Path, max_length: int) -> None:
    """The model has a position for every token of a text, as far as its architecture is known here."""
    words = _words(folder)
    if (words / "config.json").is_file() and checkpoint_json(words / "config.json").get("model_type") in FAMILIES:
        require_fit(words, length=max_length)


def _require_similarity(folder: Path) -> None:
    """The similarity that the files name is one of two vectors."""
    if (named := similarity_of(folder)) not in _SIMILARITIES:
        raise EncoderError(
            f"{folder / SETTINGS_FILE}: similarity_fn_name is {named!r}; a bi-encoder teacher compares "
            f"two vectors, one of each text, by one of: {', '.join(_SIMILARITIES)}",
            source=folder,
        )


def _require_pooling(folder: Path, pooling: str | None) -> None:
    """The files say how token vectors become one, or the recipe does; all modules are sentence-transformers' own."""
    path, modules = folder / MODULES_FILE, read_modules(folder)
    if not path.is_file():
        if pooling is None:
            raise EncoderError(
                f"{folder} has no {MODULES_FILE}, so how its token vectors become one embedding is not known; say it "
                "in the recipe (pooling: mean, cls, max or lasttoken), or save the model with sentence-transformers",
                source=folder,
            )
        return
    if pooling is not None:
        raise EncoderError(f"{path} says how the model pools; leave out `pooling: {pooling}`", source=folder)
    pools = [one.place for one in modules if one.kind == "Pooling"]
    if modules and not pools and modules[0].kind == "Transformer":
        raise EncoderError(f"{path} names no pooling module: {', '.join(one.kind for one in modules)}", source=folder)
    for place in pools:
        checkpoint_json(place / "config.json")
