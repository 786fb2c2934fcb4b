"""The protocol of contestants: JSON lines on stdin and stdout. Standalone: other tools' interpreters run it.

    {"do": "load", ...options}                                  -> {"ok": true}
    {"do": "run", "questions": [...], "passages": [...], "labels": [...]} -> {"seconds": 1.2, "scores": [...] or null}

Only `run` is timed; reading the request and writing the answer are not. Where it has an attribute `prepare`, that is
called with the questions and passages first.
"""

import json
import os
import sys
import time

if "TMKD_BENCH_CORES" in os.environ:  # before any library counts the cores
    os.sched_setaffinity(0, [int(core) for core in os.environ["TMKD_BENCH_CORES"].split(",")])


def serve(load):
    """Answer requests until stdin ends. load(options) returns run(questions, passages, labels) -> scores or None."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that what libraries print goes to the log
    run = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request.pop("do") == "load":
                run = load(request)
                answer = {"ok": True}
            else:
                if hasattr(run, "prepare"):
                    run.prepare(request["questions"], request["passages"])
                start = time.perf_counter()
                scores = run(request["questions"], request["passages"], request["labels"])
                seconds = time.perf_counter() - start
                answer = {"seconds": seconds, "scores": None if scores is None else [float(x) for x in scores]}
        except Exception as error:
            import traceback

            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
