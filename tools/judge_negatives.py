"""Judge the negatives of the built-in data set with MPNet, and write tmkd/data/builtin/judgements.json.

    make weights-mpnet
    python tools/judge_negatives.py

Every question's candidates for negatives that BM25 puts above its answer are compared with the answer by the cosine of
`builtin:mpnet`, in fp32; `tmkd/data/builtin/judgements.py` says what for. Run it when the documentation packages have
new versions, or when the parsers or the choice of candidates change. Pairs that the file has already stay and are not
compared again; `--anew` begins with an empty file, which takes about fifteen minutes on one core.

    python tools/judge_negatives.py --nothing-left-out test.parquet

writes the test pairs as they would be without these judgements, and judges nothing: MPNet's own figures on the data set
are too good by construction, and these rows show by how much.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from tmkd.config.sections import DebianDocsSizes
from tmkd.core.console import progress
from tmkd.data.builtin.corpus import read_corpus
from tmkd.data.builtin.debian_packages import fetch
from tmkd.data.builtin.judgements import FILE, Judgements, judge
from tmkd.data.builtin.pairing import make_pairs, to_judge
from tmkd.models.bi_encoder import cosine_logits
from tmkd.models.encoders.find import encoder_fingerprint, find_encoder

ENCODER = "builtin:mpnet"
MAX_LENGTH = 256
SPARE = 4  # negatives of a question that are judged beyond those that its rows need
_AT_ONCE = 50  # questions


def compare(asked: Sequence[tuple[str, list[str], list[str]]]) -> list[tuple[str, str, float, float]]:
    """Compare candidates with positives.

    Args:
        asked: questions, their positives, and the candidates.

    Returns:
        For every question and candidate: both texts, the candidate's cosine, and that of the best positive. Cosines
        stand in the scale of `cosine_logits`.
    """
    rows = [(place, text) for place, (_, right, others) in enumerate(asked) for text in (*right, *others)]
    logits = cosine_logits(
        find_encoder(ENCODER), [asked[place][0] for place, _ in rows], [text for _, text in rows], MAX_LENGTH, "fp32"
    )[:, 1].tolist()
    scores: list[dict[str, float]] = [{} for _ in asked]
    for (place, text), score in zip(rows, logits, strict=True):
        scores[place][text] = score
    return [
        (question, text, found[text], max(found[one] for one in right))
        for (question, right, others), found in zip(asked, scores, strict=True)
        for text in others
    ]


def main() -> None:
    """Read the packages, compare, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--anew", action="store_true", help="begin with an empty file")
    parser.add_argument("--nothing-left-out", type=Path, metavar="FILE", help="write the test pairs without judgements")
    arguments = parser.parse_args()
    packages = fetch()
    corpus = read_corpus(packages)
    if arguments.nothing_left_out is not None:
        parts, _ = make_pairs(corpus, DebianDocsSizes(), Judgements(frozenset(), frozenset(), {}))
        parts["test"].save(arguments.nothing_left_out)
        print(f"{arguments.nothing_left_out}: {len(parts['test'])} pairs")
        return
    known = Judgements(frozenset(), frozenset(), {}) if arguments.anew else Judgements.read(arguments.out)
    for spare in (SPARE, 0):  # with other numbers of negatives, others are held out
        while asked := to_judge(corpus, known, spare):
            print(f"{sum(len(others) for _, _, others in asked)} pairs of {len(asked)} questions", flush=True)
            above, below = judge(_compared(asked))
            known = Judgements(known.above | above, known.below | below, {})
    made_with = {
        "encoder": ENCODER,
        "encoder_fingerprint": encoder_fingerprint(find_encoder(ENCODER)),
        "max_length": MAX_LENGTH,
        "packages": {package.name: package.version for package in packages},
        "libraries": {name: version(name) for name in ("torch", "transformers", "tokenizers", "tantivy")},
        "command": "python tools/judge_negatives.py",
    }
    Judgements(known.above, known.below, made_with).save(arguments.out)
    print(f"{arguments.out}: {len(known.above)} pairs above the answer, {len(known.below)} below")


def _compared(asked: Sequence[tuple[str, list[str], list[str]]]) -> Iterator[tuple[str, str, float, float]]:
    with progress("judge", len(asked), "questions") as bar:
        for start in range(0, len(asked), _AT_ONCE):
            part = asked[start : start + _AT_ONCE]
            yield from compare(part)
            bar.advance(len(part))


if __name__ == "__main__":
    main()
