"""Models of other codebases that a study measures as they are, without training them.

Their files say what is around their networks, and that stands in the settings of the trial under
the keys that a trained trial has. What a trial of this kind has no use for is as in no recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from testbed.checkpoints import diffusers_folders, models
from testbed.checkpoints.models import Checkpoint
from testbed.checkpoints.networks import ForeignNetwork
from testbed.checkpoints.wrappings import FirstHalf, wrapping
from testbed.components.dataset import Data
from testbed.components.network import Network
from testbed.diffusion.noise_tables import NoiseTable
from testbed.errors import InputError
from testbed.trial.fixed_model import NAME, FixedModel
from testbed.trial.specs import ComponentSpec

KINDS = ("sigma", "log_sigma", "time", "index")
COMMON = ("dataset", "evaluation", "sigma_min", "sigma_max")
"""The keys of the study that such a trial takes: all others are of training."""


def checkpoint(fixed: FixedModel, table: NoiseTable | None) -> Checkpoint:
    """The model of a study's `[[fixed]]`; no weights are read.

    Args:
        fixed: what the study says.
        table: the levels that its `table` names, where it names some.

    Raises:
        InputError: files that are missing or cannot be read, or a wrapping that does not fit.
    """
    if fixed.path:
        at = fixed.scheduler or None
        return diffusers_folders.read(fixed.path, subfolder=fixed.subfolder, scheduler=at)
    return models.factory_model(
        fixed.factory,
        fixed.wrapping,
        weights=fixed.weights,
        prefix=fixed.prefix,
        average=fixed.average,
        table=table,
        sigma_data=fixed.sigma_data,
    )


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
        folder = diffusers_folders.read(
            fixed.path, subfolder=fixed.subfolder, scheduler=fixed.scheduler or None
        )
        said = folder.reading
        around, sigma_data, levels = said.wrapping, said.sigma_data, said.sigma_range
        config = said.table and {"name": "diffusers", "config": said.table.options["config"]}
        table: Any = config or "none"
        labels = folder.labels
    else:
        around, sigma_data, levels, labels = wrapping(fixed.wrapping), fixed.sigma_data, None, 0
        around.check(fixed.table is not None)
        table = fixed.table.model_dump() if fixed.table else "none"
    discrete = table != "none"
    if not labels:
        evaluation["guidance"] = "none"
    low, high = levels or (None, None)
    return {
        **kept,
        **around.settings(discrete),
        "table": table if not discrete else _nearest(table, around.nearest),
        **({"sigma_data": {"assumed": sigma_data}} if sigma_data else {}),
        **({"sigma_min": low} if low else {}),
        **({"sigma_max": high} if high else {}),
        "conditions": {"label": 0.0} if labels else {},
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


def network(fixed: FixedModel, table: NoiseTable | None) -> Network:
    """The network of a fixed model, whose build loads its weights.

    Raises:
        InputError: as `checkpoint`, and on building it: the files are no longer those of the
            digest, or the weights are not those of the network.
    """
    found = checkpoint(fixed, table)
    labelled = isinstance(found, diffusers_folders.DiffusersFolder) and bool(found.labels)

    def build() -> nn.Module:
        if fixed.digest and found.digest != fixed.digest:
            raise InputError(
                f"fixed {fixed.name!r}: its files have changed since the study was planned: "
                f"digest {found.digest}, not {fixed.digest}."
            )
        module: ForeignNetwork | FirstHalf = found.module()
        # The reverse variance is not measured.
        return FirstHalf(module) if found.reading.learned_variance else module

    def build_labelled(labels: int) -> nn.Module:
        return build()

    every = dict.fromkeys(KINDS, (-float("inf"), float("inf")))
    return Network(NAME, build_labelled if labelled else build, every)


def problems(fixed: FixedModel, data: Data) -> Iterator[str]:
    """Why a model cannot be measured on these data, a line each; nothing where it can."""
    where = f"fixed {fixed.name!r}"
    if not fixed.path:
        return
    folder = diffusers_folders.read(
        fixed.path, subfolder=fixed.subfolder, scheduler=fixed.scheduler or None
    )
    if folder.shape != data.shape:
        yield f"{where}: it takes samples of shape {folder.shape}, the data have {data.shape}."
    if folder.labels and data.labels != folder.labels:
        yield f"{where}: it has {folder.labels} classes, and the data have {data.labels}."
    if folder.needs:
        yield (
            f"{where}: its network needs {folder.needs}, which a study gives no fixed model: in "
            "place of path write a factory, a function that returns a module (x, t) which calls "
            "the network with the states of one text."
        )


def with_digest(fixed: FixedModel, table: NoiseTable | None) -> FixedModel:
    """The model with the digest of its files."""
    return fixed.model_copy(update={"digest": checkpoint(fixed, table).digest})
