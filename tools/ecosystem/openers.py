"""Open an export in one tool and rank with it, with no option that changes the order. The tool's own Python runs it.

    python openers.py NAME EXPORT < questions.json > answers.json

Questions: [{"question": "...", "passages": ["...", ...]}, ...]. Answers: {"version": "...", "kind": "logit" or
"probability", "ranked": for each question [[passage, score], ...] in the tool's order, best first}.
"""

import asyncio
import json
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

LOGIT, PROBABILITY = "logit", "probability"


def by_score(scores):
    """Rank passages by scores, for a tool that gives scores alone."""
    return sorted(([row, float(score)] for row, score in enumerate(scores)), key=lambda found: -found[1])


def transformers_pipeline(what, **options):
    """transformers: `pipeline("text-classification")`, which puts a sigmoid on one logit unless asked for the logits.

    It reads a pair whose passage is empty as the question alone, so none is asked for.
    """

    def load(folder):
        from transformers import pipeline

        classify = pipeline("text-classification", model=folder, device="cpu", **options)

        def rank(question, passages):
            found = classify([{"text": question, "text_pair": passage} for passage in passages], truncation=True)
            return by_score([row["score"] for row in found])

        return "transformers", what, rank

    return load


def cross_encoder(backend, what):
    """sentence-transformers: `CrossEncoder` on one of its backends, by `predict` or by `rank`."""

    def load(folder):
        from sentence_transformers import CrossEncoder

        more = {} if backend == "torch" else {"backend": backend}
        if backend == "openvino":  # by default it computes in bf16 on CPUs that have it: errors of about 0.02
            more["model_kwargs"] = {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}
        model = CrossEncoder(folder, **more, device="cpu")

        def predict(question, passages):
            return by_score(model.predict([(question, passage) for passage in passages]))

        def rank(question, passages):
            return [[row["corpus_id"], float(row["score"])] for row in model.rank(question, passages)]

        return "sentence-transformers", LOGIT, predict if what == "predict" else rank

    return load


def fastembed(folder):
    """fastembed: `TextCrossEncoder` with the folder as a custom model."""
    from fastembed.common.model_description import ModelSource
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    name = "tmkd/student"
    TextCrossEncoder.add_custom_model(model=name, sources=ModelSource(hf=name), model_file="onnx/model.onnx")
    model = TextCrossEncoder(name, specific_model_path=folder)
    return "fastembed", LOGIT, lambda question, passages: by_score(model.rerank(question, passages))


def rerankers(folder):
    """rerankers: `Reranker(folder, model_type="cross-encoder")`."""
    from rerankers import Reranker

    ranker = Reranker(folder, model_type="cross-encoder", verbose=0, dtype="float32", device="cpu")

    def rank(question, passages):
        found = ranker.rank(question, passages, doc_ids=list(range(len(passages))))
        return [[row.doc_id, float(row.score)] for row in found.results]

    return "rerankers", LOGIT, rank


def flashrank(folder):
    """FlashRank: `Ranker` knows models by name only, so the export takes the place of one of them in its cache."""
    from flashrank import Ranker, RerankRequest
    from flashrank.Config import model_file_map

    name = "ms-marco-TinyBERT-L-2-v2"
    cache = Path(tempfile.mkdtemp(prefix="tmkd-flashrank-"))
    shutil.copytree(folder, cache / name, ignore=shutil.ignore_patterns("onnx", "*.safetensors"))
    shutil.copyfile(Path(folder) / "onnx" / "model.onnx", cache / name / model_file_map[name])
    ranker = Ranker(name, cache_dir=str(cache), log_level="ERROR")
    shutil.rmtree(cache)

    def rank(question, passages):
        rows = [{"id": row, "text": passage} for row, passage in enumerate(passages)]
        return [[row["id"], float(row["score"])] for row in ranker.rerank(RerankRequest(question, rows))]

    return "FlashRank", PROBABILITY, rank


def infinity(raw):
    """infinity: its engine in Python, the one that its server runs; it puts a sigmoid on scores unless asked.

    Its other engine, optimum, opens no ONNX file of a local folder (0.0.78 with optimum 2.1), and gives BERT no segment
    ids.
    """

    def load(folder):
        from infinity_emb import AsyncEmbeddingEngine, EngineArgs

        # `dtype` and `model_warmup` are what its command line calls `--dtype` and `--no-model-warmup`: its default
        # precision is half precision where there is a GPU
        given = EngineArgs(model_name_or_path=folder, engine="torch", device="cpu", dtype="float32", model_warmup=False)

        async def every(questions):
            model = AsyncEmbeddingEngine.from_args(given)
            async with model:
                found = []
                for question, passages in questions:
                    ranked, _ = await model.rerank(query=question, docs=passages, raw_scores=raw)
                    found.append([[row.index, float(row.relevance_score)] for row in ranked])
            return found

        return "infinity-emb", LOGIT if raw else PROBABILITY, lambda questions: asyncio.run(every(questions))

    load.whole = True  # ranks all questions in one call
    return load


OPENERS = {
    "pipeline": transformers_pipeline(PROBABILITY),
    "pipeline-raw": transformers_pipeline(LOGIT, function_to_apply="none"),
    **{f"{what}-{backend}": cross_encoder(backend, what) for backend in ("torch", "onnx", "openvino")
       for what in ("predict", "rank")},
    "fastembed": fastembed,
    "rerankers": rerankers,
    "flashrank": flashrank,
    "infinity": infinity(False),
    "infinity-raw": infinity(True),
}  # fmt: skip


def main(name, folder):
    """Answer what stands on stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that what libraries print goes to the log
    questions = [(row["question"], row["passages"]) for row in json.load(sys.stdin)]
    load = OPENERS[name]
    package, kind, rank = load(folder)
    found = rank(questions) if getattr(load, "whole", False) else [rank(*given) for given in questions]
    json.dump({"version": version(package), "kind": kind, "ranked": found}, answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
