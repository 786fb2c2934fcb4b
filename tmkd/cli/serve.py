"""The command `serve`: an option for each field of `tmkd.serve.settings.Settings`."""

from __future__ import annotations

import functools
import inspect
from typing import Annotated, Any, get_args

import typer
from typer.main import get_command

from tmkd.cli.options import Command
from tmkd.core.console import set_quiet
from tmkd.core.errors import needs_extra


def serve() -> None:
    """Serve a student over HTTP: /rerank, /v1/rerank, /v2/rerank, /ask, and a page to ask questions on.

    Every option is an environment variable too. A request beyond a limit is answered with 413, 422, 429 or 503.

    Example: tmkd serve --model workspace/runs/demo/export --port 8080
    """


class ServeCommand(Command):
    """`tmkd serve`, whose options are made of the settings when they are first needed.

    Importing the settings takes 0.1 s and the extra `serve`, which other commands can do without.
    """

    @property
    def params(self) -> list[Any]:
        """The options."""
        params: list[Any] = _command().params
        return params

    @params.setter
    def params(self, given: list[Any]) -> None:
        """Drop the parameters of the function `serve`: it has none."""

    def invoke(self, ctx: Any) -> Any:
        """Start the server."""
        return _command().invoke(ctx)


@functools.cache
def _command() -> Any:
    """A command with an option for each setting, which starts the server."""
    with needs_extra("serve"):
        from tmkd.serve.settings import Settings, settings_of

    def start(context: typer.Context, **options: Any) -> None:
        set_quiet(False)  # so that a note about a setting is shown
        sources = {name: getattr(context.get_parameter_source(name), "name", "") for name in options}
        settings = settings_of({name: options[name] for name in options if sources[name] == "COMMANDLINE"})
        set_quiet(settings.quiet)
        with needs_extra("serve"):
            from tmkd.serve.run import run
        run(settings)

    parameters = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    parameters += [_option(name, field) for name, field in Settings.model_fields.items()]
    start.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # Typer makes options of it
    app = typer.Typer(add_completion=False)
    app.command()(start)
    command = get_command(app)
    for one in command.params:  # the settings read the variables; here they would be refused in other words
        if not one.required:
            setattr(one, "resolve_envvar_value", lambda _: None)  # noqa: B010 (mypy refuses an assignment)
    return command


def _option(name: str, field: Any) -> inspect.Parameter:
    """The option of one setting; a switch that is off by default has no `--no-` form."""
    from tmkd.serve.settings import PREFIX

    kind = (get_args(field.annotation) or (field.annotation,))[0]  # int of `int | None`, str of `tuple[str, ...]`
    names = [f"--{name.replace('_', '-')}"] if field.default is False else []
    names += ["-q"] if name == "quiet" else []
    option = typer.Option(*names, envvar=PREFIX + name.upper(), help=field.description)
    default = inspect.Parameter.empty if field.is_required() else field.default
    if default in (None, ()):
        kind, default = kind | None, None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
