"""Who takes part in each bench. Scores are compared with those of the first contestant that gives scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tmkd.bench.material import Weights
from tmkd.bench.worker import Contestant
from tmkd.core.cpu import cpu_flags
from tmkd.core.errors import TmkdError
from tmkd.core.hardware import native_bf16
from tmkd.inference.manifest import read_manifest

PROBE = "probe"
ST = "sentence-transformers"
DEEP = {
    "model_type": "bert",
    "num_hidden_layers": 24,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "num_labels": 1,
}
TEACHER = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}


def choose(contestants: list[Contestant], peers: tuple[str, ...] | None) -> list[Contestant]:
    """Keep tmkd, the plain loops and the chosen peers.

    Args:
        contestants: All of a bench.
        peers: Beginnings of the names of other tools; None for all of them.

    Raises:
        TmkdError: No peer's name begins like that.
    """
    if peers is None:
        return contestants
    names = [one.name for one in contestants if not (one.ours or one.baseline)]
    for beginning in peers:
        if not any(name.startswith(beginning) for name in names):
            raise TmkdError(f"no peer {beginning!r} in this bench; there are: {', '.join(names) or 'none'}")
    return [one for one in contestants if one.ours or one.baseline or one.name.startswith(peers)]


def probes() -> list[Contestant]:
    """The machine's matrix-product rate, in each precision that it computes natively."""
    return [_ours(f"matrix product, {kind}", PROBE, precision=kind) for kind in _precisions()]


def _precisions() -> list[str]:
    """fp32, and bf16 where the machine computes it natively."""
    return ["fp32", "bf16"] if native_bf16() else ["fp32"]


def training(model: Weights) -> list[Contestant]:
    """Trainers: one epoch over the same pairs."""
    bf16 = {"per_device_train_batch_size": 32, "bf16": True} if native_bf16() else {"per_device_train_batch_size": 32}
    return [
        _ours("tmkd", "train", model=model.student, max_length=model.max_length),
        _plain(model, "transformers, batch 32, fp32", "train"),
        _peer(model, f"{ST} trainer, defaults", "sentence_transformers_peer.py", ST, do_what="train"),
        _peer(
            model, f"{ST} trainer, batch 32{', bf16' if native_bf16() else ''}", "sentence_transformers_peer.py", ST,
            do_what="train", arguments=bf16,
        ),
        *probes(),
    ]  # fmt: skip


def training_cached(model: Weights) -> list[Contestant]:
    """A student that reads passages once and whose encoder is trained: pairs in random steps, and by passage."""
    given: dict[str, Any] = {"model": model.student, "max_length": model.max_length}
    return [
        _ours("tmkd cached, random steps", "train_cached", by_passage=False, **given),
        _ours("tmkd cached, steps by passage", "train_cached", by_passage=True, **given),
    ]


def labelling(model: Weights) -> list[Contestant]:
    """Ways to label a pool in PyTorch, as a teacher does."""
    return [
        _plain(model, "transformers, fp32", "score"),
        _plain(model, "transformers, fp32, length-sorted", "score", sorted=True),
        *_torch(model),
        _predict(model, "torch"),
        *probes(),
    ]


def reusing(model: Weights) -> list[Contestant]:
    """A cross-encoder, which reads every pair, and an embedding model, which reads every text once."""
    return [
        _ours("tmkd, cross-encoder", "score", model=model.student, max_length=model.max_length),
        _ours("tmkd, MiniLM's cosine", "similarity", model="builtin:minilm-l6"),
    ]


def scoring(model: Weights) -> list[Contestant]:
    """The exported student, everything else that runs the same weights, and a deep teacher."""
    return [
        _plain(model, "transformers, fp32", "score"),
        _plain(model, "transformers, fp32, length-sorted", "score", sorted=True),
        *_exports(model),
        *_torch(model),
        _predict(model, "torch"),
        _predict(model, "onnx"),
        _predict(model, "onnx", int8="avx512_vnni" if "avx512_vnni" in cpu_flags() else "avx2"),
        _predict(model, "openvino"),
        _predict(model, "openvino", int8="static", calibration=model.calibration),
        _flashrank(model, "fp32", "model.onnx"),
        _flashrank(model, "int8", "model_int8.onnx"),
        _peer(model, "fastembed", "fastembed_peer.py", "fastembed", do_what="score"),
        *_deep(model),
        *probes(),
    ]


def latency(model: Weights) -> list[Contestant]:
    """Ways to rerank the passages of one question."""
    return [
        *_exports(model),
        _predict(model, "torch"),
        _flashrank(model, "int8", "model_int8.onnx"),
        _random(model, "teacher of 6 x 384, transformers, fp32", {**DEEP, **TEACHER}, "fp32"),
    ]


def factors(model: Weights) -> list[Contestant]:
    """From a deep teacher in a plain loop to the export: each contestant changes one thing of the one before it."""
    one = {"threads": 1}
    ours: dict[str, Any] = {"model": model.student, "max_length": model.max_length, **one}
    deep = _random(model, "24 x 1024, fp32, batches of 32, 1 core", DEEP, "fp32", threads=1, share=8)
    fastest = max(_passed(model.export), key=read_manifest(model.export).speed)
    return [
        replace(deep, baseline=True),
        _plain(model, "+ fewer and narrower layers", "score", **one),
        _ours("+ length-sorted, token-budget batches", "score", precision="fp32", whole_module=True, **ours),
        _ours("+ only the first token in the last layer", "score", precision="fp32", **ours),
        *(_ours(f"+ {kind}", "score", precision=kind, **ours) for kind in _precisions()[1:]),
        _ours(f"+ exported, {fastest}", "export", model=model.export, backend=fastest, **one),
        _ours("+ all cores", "export", model=model.export, backend=fastest),
    ]


def _exports(model: Weights) -> list[Contestant]:
    layered = [_ours(f"tmkd, {name}", "export", model=model.export, backend=name) for name in _passed(model.export)]
    return [*layered, *_cached(model)]


def _cached(model: Weights) -> list[Contestant]:
    """The export of a student that reads passages once: its states in memory, and computed in the call."""
    if model.cached is None:
        return []
    fastest = read_manifest(model.cached).choose("auto")
    states = [(name, "ready") for name in _passed(model.cached)] + [(fastest, "computed")]
    found = [
        _ours(f"tmkd cached, {name}, states {how}", "export", model=model.cached, backend=name, states=how)
        for name, how in states
    ]
    return [replace(one, same_weights=False) for one in found]


def _passed(export: Path) -> list[str]:
    return [name for name, entry in read_manifest(export).backends.items() if entry.get("passed")]


def _torch(model: Weights) -> list[Contestant]:
    return [
        _ours(f"tmkd, PyTorch {kind}", "score", model=model.student, max_length=model.max_length, precision=kind)
        for kind in _precisions()
    ]


def _ours(name: str, does: str, *, threads: int = 0, **options: Any) -> Contestant:
    return Contestant(name, "ours.py", {"do_what": does, **_texts(options)}, ours=True, threads=threads)


def _plain(model: Weights, name: str, does: str, *, threads: int = 0, **options: Any) -> Contestant:
    given = {"do_what": does, "model": model.single, "tokenizer": model.single, "max_length": model.max_length}
    return Contestant(name, "plain.py", _texts({**given, **options}), threads=threads, baseline=True)


def _peer(model: Weights, name: str, script: str, environment: str, **options: Any) -> Contestant:
    given = {"model": model.single, "max_length": model.max_length, **options}
    return Contestant(name, script, _texts(given), environment=environment)


def _predict(model: Weights, backend: str, **options: Any) -> Contestant:
    name = f"{ST} predict, {backend}" + (" int8" if options else "")
    return _peer(model, name, "sentence_transformers_peer.py", ST, do_what="score", backend=backend, **options)


def _flashrank(model: Weights, name: str, file: str) -> Contestant:
    where = model.single / "onnx" / file
    return _peer(model, f"FlashRank {name}", "flashrank_peer.py", "flashrank", do_what="score", file=where)


def _deep(model: Weights) -> list[Contestant]:
    """A teacher of 24 layers, 1024 wide. Its weights are random, which does not change its speed."""
    return [
        _random(model, f"teacher of 24 x 1024, {kind}, length-sorted", DEEP, kind, share=8, sorted=True)
        for kind in _precisions()
    ]


def _random(
    model: Weights, name: str, config: dict[str, Any], precision: str, *, threads: int = 0, share: int = 1, **more: Any
) -> Contestant:
    """A transformers module with random weights."""
    options = {"do_what": "score", "tokenizer": model.single, "max_length": model.max_length, "config": config}
    options |= {"precision": precision, **more}
    return Contestant(name, "plain.py", _texts(options), threads=threads, share=share, same_weights=False)


def _texts(options: dict[str, Any]) -> dict[str, Any]:
    """Turn paths into strings, since options are sent as JSON."""
    return {key: value if isinstance(value, (bool, int, dict)) else str(value) for key, value in options.items()}
