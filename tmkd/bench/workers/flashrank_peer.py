"""FlashRank's own loop on our weights: it opens an ONNX file by the name of one of its models."""

import math
import shutil
import tempfile
from pathlib import Path

from protocol import serve

NAME, FILE = "ms-marco-TinyBERT-L-2-v2", "flashrank-TinyBERT-L-2-v2.onnx"


def load(options):
    from flashrank import Ranker, RerankRequest

    cache = Path(tempfile.mkdtemp(prefix="tmkd-bench-"))
    folder = cache / NAME
    shutil.copytree(options["model"], folder, ignore=shutil.ignore_patterns("onnx", "*.safetensors"))
    shutil.copyfile(options["file"], folder / FILE)
    ranker = Ranker(NAME, cache_dir=str(cache), max_length=options["max_length"], log_level="ERROR")

    def run(questions, passages, labels):
        groups = {}
        for row, question in enumerate(questions):
            groups.setdefault(question, []).append(row)
        found = [0.0] * len(questions)
        for question, rows in groups.items():
            request = RerankRequest(query=question, passages=[{"id": row, "text": passages[row]} for row in rows])
            for result in ranker.rerank(request):
                share = min(max(float(result["score"]), 1e-12), 1 - 1e-12)
                found[result["id"]] = math.log(share / (1 - share))  # it returns a sigmoid; we compare log-odds
        return found

    return run


serve(load)
