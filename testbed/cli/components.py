"""The commands of components: list, explain, check and begin them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from testbed.cli import completion, options, terminal
from testbed.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from testbed.components.base import Component
    from testbed.registry import Registry


def plugins(
    as_json: options.AsJSON = False,
    plugin: options.Plugins = None,
    plugin_dir: options.PluginDirs = None,
    strict: options.Strict = False,
) -> None:
    """List the components by axis, the plugins they come from, and what failed to load.

    Exit codes: 0 everything was loaded, 1 a plugin is broken and left out, 2 bad input.

    The document of --json has the keys components (axis, name, plugin), plugins and failures
    (plugin, kind, origin, version, error, trace).
    """
    registry = options.registry(plugin, plugin_dir, strict)
    document = _plugins_document(registry)  # which looks into each component
    if as_json:
        terminal.document(document)
    else:
        console = terminal.console()
        for line in _plugins_lines(registry):
            console.print(line)
        console.print()
        terminal.next_step(terminal.command("explain", "NAME"), ", or drop a file into plugins/.")
    if registry.failures:
        raise typer.Exit(1)


def _plugins_document(registry: Registry) -> dict[str, Any]:
    from dataclasses import asdict

    from testbed.registry import AXES

    components = [
        {"axis": axis, "name": name, "plugin": source.plugin}
        for axis in AXES
        for name in registry.names(axis)
        for source in [registry.source(getattr(registry, axis)(name))]
    ]
    return {
        "components": components,
        "plugins": [asdict(source) for source in registry.provenance],
        "failures": [asdict(source) for source in registry.failures],
    }


def _plugins_lines(registry: Registry) -> Iterator[RenderableType]:
    from rich.markup import escape
    from rich.table import Table

    from testbed.registry import AXES

    table = Table(box=None, title="Components", title_justify="left", pad_edge=False)
    for column in ("axis", "names"):
        table.add_column(column, overflow="fold")
    for axis in AXES:
        table.add_row(axis, ", ".join(registry.names(axis)))
    yield table
    yield ""
    sources = Table(box=None, title="Plugins", title_justify="left", pad_edge=False)
    for column in ("name", "kind", "version or sha256", "origin"):
        sources.add_column(column, overflow="fold")
    for source in registry.provenance:
        version = source.version[:12] if source.kind == "file" else source.version
        sources.add_row(source.plugin, source.kind, version, source.origin)
    yield sources
    for failure in registry.failures:
        what = escape(f"{failure.plugin} ({failure.origin}): {failure.error}")
        yield f"[red]not loaded[/] {what}"


def explain(
    name: Annotated[
        str,
        typer.Argument(
            metavar="FILE|NAME|TABLE",
            help="The name of a parameterization, weighting, loss, density or recipe, a table with "
            "options as in a study file, such as '{name = \"min_snr\", gamma = 3}', or a plugin "
            "file.",
            autocompletion=completion.explained,
        ),
    ],
    sigma_data: options.SigmaData = 0.5,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write a plot to this file, which ends in .svg or .png."
        ),
    ] = None,
    plugin: options.Plugins = None,
    plugin_dir: options.PluginDirs = None,
) -> None:
    """Show a component's coefficients, target and effective weight as a table, or as a plot too.

    Exit codes: 0 it is shown, 2 bad input.
    """
    named = _file_named(name)
    registry = options.registry([*(plugin or ()), *named], plugin_dir)
    from testbed.cli import explanation
    from testbed.trial.specs import ComponentSpec

    text = explanation.explain(name, registry, sigma_data, out)
    console = terminal.console()
    console.print(text, highlight=False)
    if out is not None:
        console.print(f"Plot: [bold]{out}[/]")
        words = [part for word in plugin or () for part in ("-p", word)]
        terminal.next_step(terminal.command("check", name, *words))
    else:
        stem = Path(name).stem if named else ComponentSpec.parse(name).name
        words = [*terminal.words_after("explain", name), "--out", f"{stem}.svg"]
        terminal.next_step(terminal.command("explain", *words), " draws it.")


def check(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="FILE|NAME|TABLE",
            help="A plugin file, the name of a component of any axis, or a table with options as "
            "in a study file, such as '{name = \"min_snr\", gamma = 3}'.",
            autocompletion=completion.explained,
        ),
    ],
    suggest_claims: Annotated[
        bool,
        typer.Option("--suggest-claims", help="List the claims that hold and are not made."),
    ] = False,
    as_json: options.AsJSON = False,
    plugin: options.Plugins = None,
    plugin_dir: options.PluginDirs = None,
) -> None:
    """Check components against the laws of their axis and their own claims.

    Every law is checked at several values of every option: the component's own, numbers above
    and below them, and all names.

    Exit codes: 0 every check holds or is skipped for a stated reason, 1 one fails, 2 bad input.

    The document of --json has the keys outcomes (subject, check, law, status, message, seconds)
    and, with --suggest-claims, suggested_claims by component.
    """
    import torch

    from testbed.testing import render

    torch.set_num_threads(1)
    words = [*(plugin or ()), *_file_named(subject)]
    with terminal.text_on_stderr(as_json):
        registry = options.registry(words, plugin_dir)
        components, console = render.subjects(subject, registry), terminal.console()
        found = render.outcomes(components, registry, console)
        passed = all(one.ok for one in found)
        hint = passed and not as_json
        claims = render.suggestions(components) if suggest_claims or hint else None
    if as_json:
        terminal.document(render.document(found, claims))
    else:
        render.show(found, claims if suggest_claims else claims or None, console)
        for note in render.notes(components):
            console.print(f"Note: {note}", markup=False, highlight=False)
        _after_check(subject, components[0], words, passed)
    raise typer.Exit(int(not passed))


def _after_check(subject: str, first: Component, plugins: Sequence[str], passed: bool) -> None:
    """Says what to do next, of several components with the first."""
    if not passed:
        words = terminal.words_after("check", subject)
        terminal.next_step(terminal.command("check", *words), " again, when what failed is mended.")
        return
    from testbed import templates

    given = [part for word in plugins for part in ("-p", word)]
    if first.axis in templates.EXPLAINED:
        words = ["explain", first.name, *given]
    else:
        shapes = getattr(first, "shapes", ((2,),))
        case = "mixture" if any(len(shape) == 1 for shape in shapes) else "digits"
        words = templates.study_words(first.name, first.axis, given, case)
    terminal.next_step(terminal.command(*words))


def new(
    name: Annotated[str, typer.Argument(help="The name of the new component, an identifier.")],
    axis: Annotated[
        str,
        typer.Option(
            help="What it is: a parameterization, weighting, loss, density, dataset, network, "
            "sampler, schedule, guidance, table, noise, metric or recipe.",
            autocompletion=completion.axes,
        ),
    ] = "parameterization",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The file to write, which ends in .py (required)."),
    ] = None,
) -> None:
    """Write a one-file plugin that passes its checks and says in comments what to edit.

    Exit codes: 0 the file is written, 2 bad input.
    """
    from testbed import templates

    registry = options.registry(None, None)
    file = options.output(out, f"{name}.py", "a plugin that ends in .py")
    templates.write(name, axis, file, registry)
    console = terminal.console()
    console.print(f"Written: [bold]{file}[/]. Every comment EDIT says what is yours to change.")
    console.print("Next:")
    for command in templates.commands(name, axis, file):
        console.print(f"  {command}", markup=False, highlight=False)


def _file_named(word: str) -> list[str]:
    """The plugin file that a FILE|NAME means, if it means one.

    Raises:
        InputError: a file that does not exist.
    """
    from testbed.plugin_files import is_file, missing

    if not is_file(word):
        return []
    if not os.path.isfile(word):
        raise InputError(missing(word))
    return [word]
