"""Models of other codebases that a study measures as they are, without training them.

Their files say what is around their networks, and that stands in the settings of the trial under
the keys that a trained trial has. What a trial of this kind has no use for is as in no recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from testbed.checkpoints import diffusers_folders, models
from testbed.checkpoints.diffusers_folders import DiffusersFolder
from testbed.checkpoints.models import Checkpoint
from testbed.checkpoints.networks import ForeignNetwork
from testbed.checkpoints.wrappings import FirstHalf, wrapping
from testbed.components.condition import ConditionTable
from testbed.components.dataset import Data
from testbed.components.network import Network
from testbed.diffusion.noise_tables import NoiseTable
from testbed.errors import InputError, no_such
from testbed.trial import first_stage
from testbed.trial.config import TrialSettings
from testbed.trial.fixed_model import NAME, FixedModel
from testbed.trial.specs import ComponentSpec
from testbed.trial.texts import TextEncoder

KINDS = ("sigma", "log_sigma", "time", "index")
COMMON = ("dataset", "evaluation", "sigma_min", "sigma_max")
"""The keys of the study that such a trial takes: all others are of training."""
DROPPED = 0.1
"""The rate of dropout of a condition that has a value for none, as DiT and Stable Diffusion had."""


def checkpoint(fixed: FixedModel, table: NoiseTable | None) -> Checkpoint:
    """The model of a study's `[[fixed]]`; no weights are read.

    Args:
        fixed: what the study says.
        table: the levels that its `table` names, where it names some.

    Raises:
        InputError: files that are missing or cannot be read, or a wrapping that does not fit.
    """
    if fixed.path:
        return _folder(fixed)
    if fixed.weights and not Path(fixed.weights).is_file():
        raise InputError(f"{fixed.weights}: {no_such(Path(fixed.weights))}")
    return models.factory_model(
        fixed.factory,
        fixed.wrapping,
        weights=fixed.weights,
        prefix=fixed.prefix,
        average=fixed.average,
        table=table,
        sigma_data=fixed.sigma_data,
    )


def _folder(fixed: FixedModel) -> DiffusersFolder:
    at = fixed.scheduler or None
    return diffusers_folders.read(fixed.path, subfolder=fixed.subfolder, scheduler=at)


def stated(fixed: FixedModel, study: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a trial that measures a model, as a study file would state them.

    Args:
        fixed: the model.
        study: the settings of the study's trials, of which those of `COMMON` are taken.

    Raises:
        InputError: as `checkpoint`.
    """
    kept = {key: study[key] for key in COMMON if key in study}
    evaluation = {**kept.get("evaluation", {}), "elbo": "off", "points": [], "widths": []}
    if fixed.path:
        said = _folder(fixed).reading
        around, sigma_data, levels = said.wrapping, said.sigma_data, said.sigma_range
        config = said.table and {"name": "diffusers", "config": said.table.options["config"]}
        table: Any = config or "none"
    else:
        around, sigma_data, levels = wrapping(fixed.wrapping), fixed.sigma_data, None
        around.check(fixed.table is not None)
        table = fixed.table.model_dump() if fixed.table else "none"
    discrete = table != "none"
    low, high = levels or (None, None)
    return {
        **kept,
        **around.settings(discrete),
        "table": table if not discrete else _nearest(table, around.nearest),
        **({"sigma_data": {"assumed": sigma_data}} if sigma_data else {}),
        **({"sigma_min": low} if low else {}),
        **({"sigma_max": high} if high else {}),
        "density": "table" if discrete else "loguniform",
        "weighting": "none",
        "loss": "l2",
        "evaluation": evaluation,
        "seeds": [0],
        NAME: fixed,
    }


def _nearest(table: Any, nearest: str) -> Any:
    """A table whose nearest level is nearest in what the wrapping says."""
    spec = ComponentSpec.model_validate(table)
    return {"name": spec.name, **spec.options, "nearest": nearest}


def completed(settings: TrialSettings, images: Data) -> TrialSettings:
    """The settings of a model with what depends on the data: first stage, conditions, texts.

    A folder with an AutoencoderKL is of its latents, unless the data have their shape already. The
    states that its network attends to are those of its own encoder, with the padding and the empty
    prompt of StableDiffusionPipeline.

    Args:
        settings: as `stated` has them.
        images: the data of the study's data set.

    Raises:
        InputError: a first stage or a text encoder that cannot be used, or data without the texts
            that the network needs.
    """
    fixed = settings.fixed
    assert fixed is not None
    update: dict[str, Any] = {}
    conditions = {}
    if fixed.path:
        folder = _folder(fixed).of_classes(images.labels)
        update["encoder"] = first_stage.of_folder(folder, images.shape)
        if folder.labels:
            conditions["label"] = 0.0 if folder.null is None else DROPPED
        if folder.text is not None:
            conditions[_condition_of_texts(fixed.name, folder, images)] = DROPPED
            update["text_encoder"] = TextEncoder(
                path=folder.text.path, tokens=folder.text.places, null="empty", padding="states"
            )
    if not conditions:
        none = {"guidance": ComponentSpec(name="none")}
        update["evaluation"] = settings.evaluation.model_copy(update=none)
    return settings.model_copy(update={**update, "conditions": conditions})


def _condition_of_texts(name: str, folder: DiffusersFolder, data: Data) -> str:
    """The condition of the data whose texts a model is given.

    Raises:
        InputError: the model's encoder cannot be used, or the data have no texts or several.
    """
    assert folder.text is not None
    where = f"fixed {name!r}"
    if folder.text.problem:
        raise InputError(
            f"{where}: {folder.text.problem} Or in place of path write a factory, a function that "
            "returns a module (x, t) which calls the network with the states of one text."
        )
    if len(data.texts) != 1:
        found = ", ".join(data.texts) or "none"
        raise InputError(
            f"{where}: its network attends to one text, and the data's conditions of texts are: "
            f'{found}. Expected a data set with one, such as dataset = "captions".'
        )
    return next(iter(data.texts))


def network(fixed: FixedModel, table: NoiseTable | None) -> Network:
    """The network of a fixed model, whose build loads its weights.

    Raises:
        InputError: as `checkpoint`, and on building it: the files are no longer those of the
            digest, the weights are not those of the network, or the states of texts do not fit it.
    """
    found = checkpoint(fixed, table)
    every = dict.fromkeys(KINDS, (-float("inf"), float("inf")))

    def loaded(one: Checkpoint) -> nn.Module:
        if fixed.digest and one.digest != fixed.digest:
            raise InputError(
                f"fixed {fixed.name!r}: its files have changed since the study was planned: "
                f"digest {one.digest}, not {fixed.digest}."
            )
        module: ForeignNetwork | FirstHalf = one.module()
        # The reverse variance is not measured.
        return FirstHalf(module) if one.reading.learned_variance else module

    if not isinstance(found, DiffusersFolder) or not (found.labels or found.text):
        return Network(NAME, lambda: loaded(found), every)
    folder = found

    def build_labelled(labels: int) -> nn.Module:
        return loaded(folder.of_classes(labels))

    def build_attending(labels: int, tables: Mapping[str, ConditionTable]) -> nn.Module:
        return loaded(folder.of_classes(labels).with_states(tables))

    if folder.text is None:
        return Network(NAME, build_labelled, every)
    return Network(NAME, build_attending, every, condition_kinds=("tokens",))


def problems(fixed: FixedModel, data: Data) -> Iterator[str]:
    """Why a model cannot be measured on these data, a line each; nothing where it can.

    Args:
        fixed: the model.
        data: those of its trial, latents where it has a first stage.
    """
    where = f"fixed {fixed.name!r}"
    if not fixed.path:
        return
    folder = _folder(fixed).of_classes(data.labels)
    if folder.shape != data.shape:
        yield f"{where}: it takes samples of shape {folder.shape}, {_has(folder, data)}."
    if folder.labels and data.labels != folder.labels:
        yield f"{where}: it has {folder.labels} classes, and the data have {data.labels}."
    if folder.needs:
        yield (
            f"{where}: its network needs {folder.needs}, which a study gives no fixed model: in "
            "place of path write a factory, a function that returns a module (x, t) which calls "
            "the network with it."
        )


def _has(folder: DiffusersFolder, data: Data) -> str:
    """What the data have in place of the shape that a model takes."""
    if data.pixels is not None:
        return (
            f"and {folder.first_stage} makes latents of {data.shape} of the data's images, which "
            f"have {data.pixels.shape}"
        )
    if len(data.shape) == len(folder.shape) == 3 and data.shape[0] != folder.shape[0]:
        return (
            f"the data have {data.shape}; where those are latents of the data's images, "
            f"{folder.root} needs a folder vae with their AutoencoderKL"
        )
    return f"the data have {data.shape}"


def with_digest(fixed: FixedModel, table: NoiseTable | None) -> FixedModel:
    """The model with the digest of its files."""
    return fixed.model_copy(update={"digest": checkpoint(fixed, table).digest})
