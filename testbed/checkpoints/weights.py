"""Weights of other codebases: files of tensors, prefixes, averages, and a strict comparison."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from testbed.errors import InputError, did_you_mean, no_such, one_line

WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put in front of every name."""
PREFIXES = ("model.diffusion_model.", "state_dict.", "model.", "net.", "unet.", "network.")
"""Usual prefixes of the network within a file; looked for in messages."""
LDM = "model_ema"
"""The average of latent diffusion and generative-models, whose names have lost their dots."""
AVERAGES = (LDM, "ema_model", "ema", "averaged")
RAW = "none"
"""The average that is none: the weights themselves."""
SHOWN = 5
"""How many names of each kind a message lists."""


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, those of nested mappings by dotted names.

    It is a .safetensors file, or one of torch.save that holds tensors alone.

    Raises:
        InputError: no such file, a damaged one, or one with pickled objects; the message says how
            it is turned into safetensors where it came from.
    """
    if not path.is_file():
        raise InputError(f"{path}: {no_such(path)}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as problem:
            raise InputError(f"{path} cannot be read: {one_line(problem)}") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(_of_objects(path)) from None
    except Exception as problem:  # a damaged archive raises whatever its damage leads to
        raise InputError(f"{path} cannot be read: {one_line(problem)}") from None
    found = dict(_tensors(content))
    if not found:
        raise InputError(f"{path} holds no tensors.")
    return found


def _of_objects(path: Path) -> str:
    name = path.name
    return (
        f"{path} holds pickled objects: to read them is to run what they say, and they are not "
        "read. Where the file comes from, with the code that wrote it and if you trust it, write "
        f"its tensors alone: state = torch.load({name!r}, weights_only=False) (pickle.load for a "
        '.pkl), take the state_dict of what you want of it, such as state["ema"].state_dict(), '
        f"and safetensors.torch.save_file({{k: v.contiguous() for k, v in state_dict.items()}}, "
        f'"{path.stem}.safetensors").'
    )


def _tensors(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested mappings and lists by dotted names; numbers and texts are left out."""
    if isinstance(content, Tensor):
        yield prefix, content
    elif isinstance(content, Mapping | list | tuple):
        pairs = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, value in pairs:
            yield from _tensors(value, f"{prefix}.{key}" if prefix else str(key))


def averages(names: Iterable[str]) -> list[str]:
    """The averages that a file has besides the weights themselves, by its names."""
    heads = {name.partition(".")[0] for name in names}
    return [one for one in AVERAGES if one in heads]


def select(
    tensors: Mapping[str, Tensor], names: Iterable[str], prefix: str = "", average: str = ""
) -> dict[str, Tensor]:
    """The tensors of one set of weights, by the names that a module has for them.

    Args:
        tensors: of a file.
        names: those of the module.
        prefix: what stands in front of the network's names; what torch.compile and
            DistributedDataParallel put there ("_orig_mod.", "module.") need not be said.
        average: of several sets, the first word of the one that is taken, such as "ema" or
            "model_ema"; "none" for the weights themselves, which need not be said where there are
            no others.

    Raises:
        InputError: averages to choose from and no choice, an average that the file has not, or a
            prefix that no name has.
    """
    known = averages(tensors)
    heads = {name.partition(".")[0] for name in tensors}
    if not average and known and len(heads) > 1:
        choices = ", ".join(f'"{one}"' for one in (*known, RAW))
        raise InputError(
            f"the file has averages besides the weights themselves: average = {choices}: say which."
        )
    if average == LDM:
        return _without_dots(tensors, names, prefix)
    if average not in ("", RAW):
        if average not in heads:
            raise InputError(
                f"average = {average!r}: no name begins with {average!r}."
                f"{did_you_mean(average, heads)}"
            )
        tensors = {k: v for k, v in _after(tensors, f"{average}.")}
    elif known and len(heads) > 1:
        tensors = {k: v for k, v in tensors.items() if k.partition(".")[0] not in known}
    tensors = dict(_unwrapped(tensors))
    return dict(_after(tensors, prefix, needed=True)) if prefix else tensors


def _after(
    tensors: Mapping[str, Tensor], prefix: str, needed: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """What has a prefix, without it."""
    found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    if needed and not found:
        heads = sorted({f"{name.partition('.')[0]}." for name in tensors})
        raise InputError(
            f"prefix = {prefix!r}: no name of the file has it.{did_you_mean(prefix, heads)} Its "
            f"names begin with {', '.join(heads[:SHOWN])}."
        )
    yield from _unwrapped(found)


def _unwrapped(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors without the prefixes of `WRAPPERS`, where all of them have one."""
    for wrapper in WRAPPERS:
        if tensors and all(name.startswith(wrapper) for name in tensors):
            yield from _unwrapped({k.removeprefix(wrapper): v for k, v in tensors.items()})
            return
    yield from tensors.items()


def _without_dots(
    tensors: Mapping[str, Tensor], names: Iterable[str], prefix: str
) -> dict[str, Tensor]:
    """The averages of LitEma: `model_ema.` and the parameter's name within `model` without dots.

    It averages parameters; buffers are those of the weights themselves.

    Raises:
        InputError: two names are one without their dots, or the file has no such averages.
    """
    inside = (prefix or "model.diffusion_model.").removeprefix("model.")
    flat = {name: f"{LDM}.{(inside + name).replace('.', '')}" for name in names}
    twice = [one for one, n in Counter(flat.values()).items() if n > 1]
    if twice:
        both = [name for name, one in flat.items() if one == twice[0]]
        raise InputError(f"average = {LDM!r}: {' and '.join(both)} are one name without dots.")
    found = {name: tensors[one] for name, one in flat.items() if one in tensors}
    if not found:
        raise InputError(
            f"average = {LDM!r}: the file has no name such as {next(iter(flat.values()), LDM)!r}."
        )
    whole = f"model.{inside}"
    rest = {name: tensors[whole + name] for name in flat if whole + name in tensors}
    return {**rest, **found}


def compare(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: str) -> None:
    """Refuses weights that are not exactly those of a module.

    Args:
        state: the weights by name.
        wanted: the module's own.
        file: where they come from, for the message.

    Raises:
        InputError: missing and unexpected names, each with the nearest, and other shapes.
    """
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    lines = _listed("missing", missing, unexpected) + _listed("unexpected", unexpected, missing)
    shapes = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(one.shape)}"
        for name, one in wanted.items()
        if name in state and state[name].shape != one.shape
    ]
    lines += [f"other shapes: {_some(shapes)}"] if shapes else []
    if not lines:
        return
    hint = ""
    if len(missing) == len(wanted):
        found = [one for one in PREFIXES if any(name.startswith(one) for name in state)]
        hint = f" Names begin with {found[0]!r}: prefix = {found[0]!r}?" if found else ""
    raise InputError(f"{file} does not have the weights of this network: {'; '.join(lines)}.{hint}")


def _listed(what: str, names: Sequence[str], among: Sequence[str]) -> list[str]:
    if not names:
        return []
    some = [name + did_you_mean(name, among).rstrip("?").replace(" Did you mean", ", for")
            for name in names[:SHOWN]]  # fmt: skip
    return [f"{len(names)} {what}: {_some([*some, *names[SHOWN:]])}"]


def _some(words: Sequence[str]) -> str:
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more


def load_weights(
    network: nn.Module, path: str | Path, *, prefix: str = "", average: str = ""
) -> None:
    """Gives a network the weights of a file, all of them and no others.

    Args:
        network: the module that the file's network is an instance of.
        path: a .safetensors file, or one of torch.save that holds tensors alone.
        prefix, average: which of the file's tensors; as for `select`.

    Raises:
        InputError: the file cannot be read, or its names and shapes are not those of the network.
    """
    file, wanted = Path(path), network.state_dict()
    try:
        state = select(read(file), wanted, prefix, average)
    except InputError as problem:
        text = str(problem)
        raise InputError(text if text.startswith(str(file)) else f"{file}: {text}") from None
    compare(state, wanted, str(file))
    network.load_state_dict(state)
