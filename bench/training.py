"""Training speed: a plain loop against tmkd's, interleaved rounds on the same pairs, medians.

    python bench/training.py [--rounds 3] [--pairs 512] [--layers 3] [--json FILE]

plain: the transformers module, fp32, batches of 32 in random order, padded to the longest of the data, AdamW.
tmkd:  length-sorted steps of 32, our forward, the precision of the machine, fused AdamW, frozen embeddings.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification

from tmkd.batching import pad
from tmkd.encoder.checkpoint import load_encoder, save_student
from tmkd.encoder.find import find_encoder
from tmkd.hardware import describe, prepare
from tmkd.pairs.debian_docs import build
from tmkd.progress import say
from tmkd.student import Student
from tmkd.teachers import golden_only
from tmkd.tokenizer import Encoded, PairTokenizer
from tmkd.training import Fit, train

LENGTH = 192


def plain(folder: Path, encoded: Encoded, labels: torch.Tensor, pad_id: int) -> float:
    """Pairs per second of the loop most people write first."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
    longest = max(range(len(labels)), key=lambda row: len(encoded.ids[row]))
    start = time.perf_counter()
    for first in range(0, len(rows), 32):
        batch = rows[first : first + 32]
        arrays = pad(encoded.ids, encoded.type_ids, [*batch, longest], pad_id)  # the longest sets the width
        ids, mask, types = (torch.from_numpy(array[:-1]) for array in arrays)
        logits = model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
        F.cross_entropy(logits, labels[batch]).backward()
        optimiser.step()
        optimiser.zero_grad()
    return len(rows) / (time.perf_counter() - start)


def ours(source: Path, layers: int, encoded: Encoded, labels: torch.Tensor, pad_id: int) -> float:
    """Pairs per second of `tmkd.training.train`."""
    model = Student(load_encoder(source, 2, layers=layers), 2)
    with tempfile.TemporaryDirectory() as state:
        start = time.perf_counter()
        train(model, encoded, pad_id, golden_only(labels), Fit(1e-4, 1, 32, 0), name="tmkd", state_folder=Path(state))
        return len(labels) / (time.perf_counter() - start)


def main() -> None:
    """Print a table; write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    prepare()
    source = find_encoder("builtin:minilm-l6")
    tokenizer = PairTokenizer(source, LENGTH)
    pairs = build().train
    pairs = pairs.take(range(min(options.pairs, len(pairs))))
    encoded = tokenizer.encode(pairs.questions, pairs.passages)
    labels = torch.from_numpy(pairs.labels)
    found: dict[str, list[float]] = {"plain": [], "tmkd": []}
    with tempfile.TemporaryDirectory() as folder:
        save_student(Student(load_encoder(source, 2, layers=options.layers), 2), Path(folder), source, LENGTH, {})
        for number in range(options.rounds):
            found["plain"].append(plain(Path(folder), encoded, labels, tokenizer.pad_id))
            found["tmkd"].append(ours(source, options.layers, encoded, labels, tokenizer.pad_id))
            say(
                f"round {number + 1}: "
                + ", ".join(f"{name} {speeds[-1]:.1f} pairs/s" for name, speeds in found.items())
            )
    ratios = [fast / slow for fast, slow in zip(found["tmkd"], found["plain"], strict=True)]
    result = {name: statistics.median(speeds) for name, speeds in found.items()}
    print(f"{options.layers} layers, {len(pairs)} pairs, {describe('auto')}")
    print(
        f"plain {result['plain']:.1f} pairs/s, tmkd {result['tmkd']:.1f} pairs/s, ratio {statistics.median(ratios):.1f}"
    )
    if options.json:
        options.json.write_text(json.dumps({**result, "ratio": statistics.median(ratios), "rounds": found}, indent=2))


if __name__ == "__main__":
    main()
