"""From the options of `tmkd bench serve|soak|fuzz` to the measurement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tmkd.bench import fuzz, serve, soak
from tmkd.bench.command import Options
from tmkd.bench.material import rows_of, weights


@dataclass(frozen=True)
class Serve:
    """Options that only these benches have; see `tmkd bench --help`."""

    passages: int = 100
    seconds: float = 20.0
    rates: tuple[float, ...] = ()
    kills: int = 3


class Outcome(Protocol):
    """What a bench gives. problems: why it counts as failed; empty: it does not."""

    @property
    def problems(self) -> list[str]: ...

    def to_json(self) -> dict[str, Any]: ...

    def show(self) -> None: ...


def run_serving(options: Options, more: Serve) -> Outcome:
    """One bench, start to end.

    Raises:
        TmkdError: rows or a model that cannot be used, a server that does not start.
    """
    if options.bench == "serve":
        return serve.run(
            serve.Load(
                options.model, options.layers or 3, options.max_length, options.pairs, more.passages, options.rounds,
                more.seconds, more.rates, options.peers is None or bool(options.peers), options.threads,
            )
        )  # fmt: skip
    export = _export(options)
    if options.bench == "soak":
        return soak.run(export, more.seconds, kills=more.kills, threads=options.threads)
    schema = options.peers is None or bool(options.peers)
    return fuzz.run(export, options.count, schema=schema, threads=options.threads)


def _export(options: Options) -> Path:
    """The model as an export: itself where it is one."""
    if (Path(options.model) / "parity.json").is_file():
        return Path(options.model)
    rows = rows_of(options.pairs)
    return weights(options.model, options.layers or 3, options.max_length, rows, export=True).export
