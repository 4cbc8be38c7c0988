"""Models and pipelines of diffusers, read from their folders; nothing is downloaded."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from testbed.checkpoints import diffusers_parts, schedulers
from testbed.checkpoints.diffusers_parts import CONFIG, TextInput, read_json, whole
from testbed.checkpoints.networks import ForeignNetwork
from testbed.checkpoints.schedulers import Reading
from testbed.checkpoints.weights import SHOWN
from testbed.components.condition import ConditionTable
from testbed.data import text_encoder
from testbed.diffusion.denoiser import Denoiser
from testbed.errors import InputError, UnknownName, did_you_mean, one_line, unknown
from testbed.registry import Registry

INDEX, SCHEDULER = "model_index.json", "scheduler_config.json"
MODELS = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel")
"""The classes that are read."""
PARTS = ("unet", "transformer")
"""The folders of a pipeline that have its network."""
EXTRA = "images"
STATES = "encoder_hidden_states"
"""The argument of a network that attends to texts."""
TEXT = "text"
"""The condition of a model whose texts are prompts, and not those of data."""


@dataclass(frozen=True)
class DiffusersFolder:
    """What the files of a model or a pipeline say.

    Args:
        path: the folder.
        network: the folder of the network's config.json and weights.
        model: the class of the network, one of `MODELS`.
        reading: how it is wrapped, by its scheduler.
        shape: of one sample, (C, H, W).
        labels: the number of classes that its network is given; 0 where it is given none.
        null: the class that stands for none, where the network has one.
        text: the states of texts that its network attends to; None where it attends to none.
        needs: an argument besides these that its network cannot do without, else "".
        tables: the states of texts by the name of their condition.
    """

    path: Path
    network: Path
    model: str
    reading: Reading
    shape: tuple[int, ...]
    labels: int = 0
    null: int | None = None
    text: TextInput | None = None
    needs: str = ""
    tables: Mapping[str, ConditionTable] = field(default_factory=dict, compare=False)

    def with_prompts(self, prompts: Sequence[str] = ()) -> DiffusersFolder:
        """The model with the condition "text": class i is prompt i, and -1 the empty prompt.

        Raises:
            InputError: the prompts are one text and no list, its network attends to no texts, its
                folder has no encoder that fits, or a prompt has more tokens than there are places.
        """
        if isinstance(prompts, str):
            raise InputError(f"prompts = {prompts!r}: expected a list of texts, [{prompts!r}].")
        if self.text is None:
            raise InputError(f"{self.path}: {self.model} attends to no texts: prompts have no use.")
        if self.text.problem:
            raise InputError(self.text.problem)
        texts = [*prompts, ""]
        states = text_encoder.padded_states(self.text.path, texts, self.text.places)
        table = ConditionTable("tokens", torch.stack(states), off=len(prompts))
        return self.with_states({TEXT: table})

    def with_states(self, tables: Mapping[str, ConditionTable]) -> DiffusersFolder:
        """The model with the states of the texts of a condition, by its name.

        Raises:
            InputError: they are of another width than the network takes.
        """
        for table in tables.values():
            if self.text is None or table.shape[-1] != self.text.width:
                raise InputError(
                    f"{self.path}: the states of texts have width {table.shape[-1]}, and its "
                    f"network takes {self.text.width if self.text else 'none'}."
                )
        return replace(self, tables=tables)

    def of_classes(self, classes: int) -> DiffusersFolder:
        """The model of data of so many classes: one class more, the last, stands for none.

        That is so in latent diffusion's models of ImageNet, and in what `testbed export` writes.
        """
        if self.labels != classes + 1 or self.null is not None:
            return self
        return replace(self, labels=classes, null=classes)

    @property
    def root(self) -> Path:
        """The folder of the pipeline, which has the folders of all its parts."""
        return self.path if self.network != self.path else self.network.parent

    @property
    def first_stage(self) -> Path | None:
        """The folder of the AutoencoderKL whose latents its samples are; None without one.

        Raises:
            InputError: its first stage is of another class.
        """
        return diffusers_parts.first_stage(self.root)

    @property
    def digest(self) -> str:
        """Of all files that the network and its reading come from: sha256, its first 16 letters.

        Raises:
            InputError: there are no .safetensors.
        """
        weights = self._weights()
        digest = hashlib.sha256(repr(self.reading).encode())
        if self.reading.table is not None:
            digest.update(self.reading.table.sigmas.numpy().tobytes())
        for file in sorted([self.network / CONFIG, *weights]):
            digest.update(file.name.encode())
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()[:16]

    def _weights(self) -> list[Path]:
        if not (found := list(self.network.glob("*.safetensors"))):
            raise InputError(_without_safetensors(self.network, self.model))
        return found

    def module(self) -> ForeignNetwork:
        """The network with its weights, float32, in evaluation mode.

        Raises:
            InputError: diffusers is not installed, there are no .safetensors, or the weights are
                not those of the network.
        """
        classes = imported(str(self.path))
        self._weights()
        try:
            with _quiet():
                model, info = getattr(classes, self.model).from_pretrained(
                    self.network, use_safetensors=True, local_files_only=True,
                    output_loading_info=True, low_cpu_mem_usage=False, torch_dtype=torch.float32,
                    ignore_mismatched_sizes=True,
                )  # fmt: skip
        except Exception as problem:  # a damaged file raises whatever its damage leads to
            raise InputError(f"{self.network} cannot be loaded: {one_line(problem)}") from None
        _check(self.network, info)
        network: nn.Module = model.eval()
        said = self.reading
        return ForeignNetwork(
            network,
            said.time_scale,
            said.sign,
            null=self.null,
            keywords=dict.fromkeys(self.tables, STATES),
            tables=self.tables,
        ).eval()

    def denoiser(
        self, sigma_data: float | None = None, registry: Registry | None = None
    ) -> Denoiser:
        """The denoiser around the network.

        Raises:
            InputError: as `module`.
        """
        said = self.reading
        about = sigma_data or said.sigma_data
        around = said.wrapping.around
        return around(self.module(), about, said.table, said.learned_variance, registry)


def imported(path: str) -> Any:
    """The module diffusers.

    Raises:
        InputError: it is not installed; the message names the extra.
    """
    try:
        import diffusers
    except ImportError:
        raise InputError(
            f"{path} is a model of diffusers, which is not installed: pip install "
            f"'diffusion-testbed[{EXTRA}]'."
        ) from None
    return diffusers


def is_folder(path: str | Path) -> bool:
    """Whether a path is the folder of a model or a pipeline of diffusers."""
    return any((Path(path) / name).is_file() for name in (INDEX, CONFIG))


def read(
    path: str | Path, *, subfolder: str = "", scheduler: str | Path | None = None
) -> DiffusersFolder:
    """What the files of a folder say; no weights are read.

    Args:
        path: the folder of a pipeline, with model_index.json, or of its network, with config.json.
        subfolder: of a pipeline, the folder of the network: "unet" or "transformer", whichever
            there is, by default; "unet_ema" for an average that is kept beside it.
        scheduler: the scheduler's folder or its scheduler_config.json; by default that of the
            pipeline, also of the one that a network's folder lies in.

    Raises:
        InputError: there is no such folder, a file that is missing or cannot be read, or a model or
            a scheduler that is not one of those that are read.
    """
    folder = Path(path)
    if not folder.is_dir():
        near = [str(one) for one in folder.parent.glob("*")] if folder.parent.is_dir() else []
        raise InputError(f"{path}: there is no such folder.{did_you_mean(str(path), near)}")
    network = _network(folder, subfolder)
    written = read_json(network / CONFIG)
    model = str(written.get("_class_name"))
    if model not in MODELS:
        raise UnknownName(f"{network / CONFIG}: _class_name: {unknown('model', model, MODELS)}")
    file = _scheduler(folder, network, scheduler)
    stated = read_json(file)
    try:
        said = schedulers.reading(stated)
    except InputError as problem:
        raise InputError(f"{file}: {problem}") from None
    size = written.get("sample_size")
    sizes = size if isinstance(size, list | tuple) else (size, size)
    if not all(isinstance(one, int) for one in sizes):
        raise InputError(f"{network / CONFIG}: sample_size = {size!r}: expected a whole number.")
    channels = whole(network / CONFIG, written, "in_channels")
    out = whole(network / CONFIG, written, "out_channels", channels)
    if out not in (channels, 2 * channels):
        raise InputError(
            f"{network / CONFIG}: in_channels = {channels}, out_channels = {out}: expected as many "
            "as there are in, or twice as many, with a variance."
        )
    # The scheduler of a sampler says nothing of a variance that it does not use.
    said = replace(said, learned_variance=out == 2 * channels)
    root = folder if network != folder else network.parent
    classes, null = _classes(root, model, network / CONFIG, written)
    return DiffusersFolder(
        folder,
        network,
        model,
        said,
        (channels, *map(int, sizes)),
        classes,
        null,
        diffusers_parts.text_input(root, written, network / CONFIG) if model == MODELS[1] else None,
        _needs(written),
    )


def load_diffusers(
    path: str | Path,
    *,
    subfolder: str = "",
    scheduler: str | Path | None = None,
    prompts: Sequence[str] | None = None,
    sigma_data: float | None = None,
    registry: Registry | None = None,
) -> Denoiser:
    """The Denoiser of a model or a pipeline of diffusers, in evaluation mode.

    The prediction type, the levels and the time that the network is given are those that its
    scheduler_config.json states. Weights are read from .safetensors alone, and nothing is
    downloaded. Conditions are passed by the names of the network's arguments, such as
    `{"encoder_hidden_states": states}`; classes are the condition "label".

    Args:
        path, subfolder, scheduler: as for `read`.
        prompts: of a pipeline with a text encoder, the texts of its condition "text": class i is
            prompt i, and -1, or no class at all, is the empty prompt. Without prompts the network
            is given the states that a call passes as "encoder_hidden_states".
        sigma_data: sqrt(E|x0|^2/d) of its data, with which sampling starts; by default that of an
            EDM scheduler, or 1.
        registry: where the parameterizations are found; by default the bundled ones.

    Raises:
        InputError: diffusers is not installed, a file that is missing or cannot be read, a class
            that is not read, weights that are not those of the network, or prompts of a network
            that takes none.
    """
    folder = read(path, subfolder=subfolder, scheduler=scheduler)
    if prompts is not None:
        folder = folder.with_prompts(prompts)
    return folder.denoiser(sigma_data, registry).eval()


def _classes(
    root: Path, model: str, file: Path, written: Mapping[str, Any]
) -> tuple[int, int | None]:
    """The number of classes of a network, and the class that stands for none.

    A DiT has a row for none after those that its config.json counts. Where the pipeline names fewer
    classes than there are rows, in `id2label`, the last row is for none.
    """
    of_dit = model == MODELS[2]
    key, default = ("num_embeds_ada_norm", 1000) if of_dit else ("num_class_embeds", 0)
    rows = whole(file, written, key, default) + of_dit
    index = root / INDEX
    names = read_json(index).get("id2label") if rows and index.is_file() else None
    if isinstance(names, dict) and 0 < len(names) < rows:
        return len(names), rows - 1
    return (rows - 1, rows - 1) if of_dit else (rows, None)


def _needs(written: Mapping[str, Any]) -> str:
    """An argument that the network needs and no condition here is, with the key that says so."""
    kinds = {
        "addition_embed_type": "added_cond_kwargs",
        "class_embed_type": "class_labels",
        "encoder_hid_dim_type": "added_cond_kwargs",
    }
    for key, argument in kinds.items():
        value = written.get(key)
        if value is not None and (key, value) != ("encoder_hid_dim_type", "text_proj"):
            return f"{argument} ({key} = {value!r})"
    return ""


def _network(folder: Path, subfolder: str) -> Path:
    """The folder of the network of a pipeline, or of a network alone.

    Raises:
        InputError: there is none.
    """
    if subfolder:
        if not (folder / subfolder / CONFIG).is_file():
            near = [one.parent.name for one in folder.glob(f"*/{CONFIG}")]
            raise UnknownName(f"{folder}: {unknown('subfolder of a network', subfolder, near)}")
        return folder / subfolder
    for part in PARTS:
        if (folder / part / CONFIG).is_file():
            return folder / part
    if (folder / CONFIG).is_file():
        return folder
    raise InputError(
        f"{folder} is no model of diffusers: expected {INDEX} with a folder "
        f"{' or '.join(PARTS)}, or {CONFIG}."
    )


def _scheduler(folder: Path, network: Path, stated: str | Path | None) -> Path:
    """The file of the scheduler.

    Raises:
        InputError: there is none.
    """
    if stated is not None:
        places = [Path(stated), Path(stated) / SCHEDULER]
    else:
        around = (folder / "scheduler", folder, network.parent / "scheduler", network.parent)
        places = [place / SCHEDULER for place in around]
    found = next((file for file in places if file.is_file()), None)
    if found is None:
        where = f"at {stated}" if stated is not None else f"in {folder}/scheduler"
        raise InputError(
            f"{folder}: there is no {SCHEDULER} {where}: what the network returns, and for which "
            "levels, is stated there. Give the scheduler's folder: scheduler = ...."
        )
    return found


def _without_safetensors(folder: Path, model: str) -> str:
    pickles = sorted(one.name for one in folder.glob("*.bin"))
    if not pickles:
        return f"{folder} has no weights: expected *.safetensors."
    return (
        f"{folder} has its weights in {', '.join(pickles[:SHOWN])} alone: to read a pickle is to "
        "run what it says, and it is not read. Where it comes from, and if you trust it: "
        f"diffusers.{model}.from_pretrained({folder.name!r}).save_pretrained({folder.name!r}) "
        "writes .safetensors."
    )


def _check(folder: Path, info: dict[str, Any]) -> None:
    """Refuses weights that are not all of the network's and no others.

    Raises:
        InputError: a line for each kind of difference.
    """
    kinds = {"missing": "missing_keys", "unexpected": "unexpected_keys", "of another shape":
             "mismatched_keys"}  # fmt: skip
    lines = []
    for word, key in kinds.items():
        names = [one if isinstance(one, str) else one[0] for one in info.get(key, ())]
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(f"{len(names)} {word}: {', '.join(sorted(names)[:SHOWN])}{more}")
    if lines:
        raise InputError(f"{folder}: the weights are not those of {CONFIG}: {'; '.join(lines)}.")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps diffusers from saying in its log what is an error here."""
    log = logging.getLogger("diffusers")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
