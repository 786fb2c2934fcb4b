"""The server that people write first: FastAPI and CrossEncoder.predict. Standalone: another tool's interpreter runs it.

One request is predicted at a time: several at once would fight over the same cores.
"""

import json
import os
import socket
import sys
import tempfile
import threading

if os.environ.get("TMKD_BENCH_CORES"):  # before any library counts the cores
    os.sched_setaffinity(0, [int(core) for core in os.environ["TMKD_BENCH_CORES"].split(",")])


def load(options):
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(options["threads"])
    folder = options["model"]
    if "config" in options:  # a teacher's size with random weights: for speed only
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        folder = tempfile.mkdtemp(prefix="tmkd-bench-")
        config = AutoConfig.for_model(**options["config"])
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(options["model"]).save_pretrained(folder)
    return CrossEncoder(folder, max_length=options["max_length"])


def main():
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    model, lock, app = load(json.loads(sys.argv[1])), threading.Lock(), FastAPI()

    class Request(BaseModel):
        query: str
        texts: list[str]

    @app.post("/rerank")
    def rerank(request: Request):
        with lock:
            scores = model.predict([(request.query, text) for text in request.texts], show_progress_bar=False)
        ranks = [{"index": row, "score": float(score)} for row, score in enumerate(scores)]
        return sorted(ranks, key=lambda rank: -rank["score"])

    link = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{link.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[link])


main()
