"""Conditions: their dropout in training, what a conditional model is measured by, what is refused.

A law is a function of an implementation. It passes for ours and fails for its mutants.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import studies
from helpers.command_line import run_here, trials_only
from helpers.conditional import REGISTRY, data, exact
from helpers.studies import CONDITIONAL
from PIL import Image
from safetensors.torch import load_file
from scipy import stats
from torch import Tensor, nn

import testbed
from testbed.components.dataset import Data
from testbed.errors import InputError, UnknownName
from testbed.metrics import denoising
from testbed.random import stream
from testbed.sampling import guidance_methods
from testbed.study import plan, study_file
from testbed.training import batch as batches
from testbed.training import conditions
from testbed.training import trainer as trainers
from testbed.training.batch import Batch, unbatchable
from testbed.training.objective import Objective
from testbed.training.settings import Training
from testbed.training.trainer import BLOCK, Trainer, TrainingJob, losses
from testbed.trial import class_conditions, restore, sample
from testbed.trial.config import TrialConfig
from testbed.trial.guided import Guide
from testbed.trial.specs import ComponentSpec

CPU = torch.device("cpu")
U = 2.0**-24


def training_job(
    rates: Mapping[str, float],
    seed: int = 0,
    parameterization: str = "edm",
    built: Mapping[str, float] | None = None,
    **training: Any,
) -> TrainingJob:
    """A small conditional trial; `built` are the conditions of its network where others."""
    labels, further, _ = class_conditions.built(rates if built is None else built, data())
    net = REGISTRY.network("mlp", width=16, depth=1, features=4)(
        data().shape, labels, seed, further
    )
    p, sd = REGISTRY.parameterization(parameterization), data().sigma_data
    objective = Objective(
        p,
        REGISTRY.weighting("edm"),
        REGISTRY.loss("l2"),
        REGISTRY.density("lognormal"),
        sd,
    )
    denoiser = testbed.Denoiser(net, p, sd, c_in="shared", c_noise="shared")
    settings = Training(**{"steps": 110, "batch": 16, "points": 2, **training})
    return TrainingJob(denoiser, objective, settings, seed, rates)


def trainer(one: TrainingJob) -> Trainer:
    return Trainer(*one[:2], data(), *one[2:4], CPU, one.conditions)


def weights(one: TrainingJob) -> dict[str, Tensor]:
    """The averaged weights of a trial trained for itself."""
    alone = trainer(one)
    for _ in alone:
        pass
    module = alone.averaged().network
    assert isinstance(module, nn.Module)
    return {key: value.clone() for key, value in module.state_dict().items()}


# --- dropout ------------------------------------------------------------------------------------

OfBlock = Callable[..., dict[str, Tensor]]


def block_of(
    of_block: OfBlock, rates: Mapping[str, float], seed: int = 0, block: int = 0, size: int = 400
) -> dict[str, Tensor]:
    index = torch.arange(BLOCK * size).view(BLOCK, size) % len(data().train)
    return of_block(data().condition("train", rates), rates, seed, block, index)


def law_classes_are_those_of_the_rows(of_block: OfBlock) -> None:
    """Where nothing is dropped a condition is the class of the row that is drawn."""
    found = block_of(of_block, {"label": 0.0, "group": 0.4})
    rows = torch.arange(BLOCK * 400) % len(data().train)
    assert data().train_labels is not None
    assert torch.equal(found["label"].flatten(), data().train_labels[rows])
    kept = found["group"] >= 0
    group = data().condition("train", ["group"])["group"][rows].view_as(kept)
    assert torch.equal(found["group"][kept], group[kept])


def law_rate_is_the_share_dropped(of_block: OfBlock) -> None:
    """Rates 0 and 1 are never and always; others a binomial number of 20,000."""
    for rate in (0.0, 0.1, 0.5, 0.9, 1.0):
        off = block_of(of_block, {"label": rate})["label"] < 0
        n, k = off.numel(), int(off.sum())
        if rate in (0, 1):
            assert k == rate * n
        else:
            assert stats.binomtest(k, n, rate).pvalue > 1e-6


def law_conditions_are_dropped_independently(of_block: OfBlock) -> None:
    """All four combinations of two conditions, as often as chance has it."""
    found = block_of(of_block, {"label": 0.5, "group": 0.5})
    pairs = 2 * (found["label"] < 0).long() + (found["group"] < 0).long()
    counts = torch.bincount(pairs.flatten(), minlength=4).numpy()
    assert stats.chisquare(counts).pvalue > 1e-6


def law_uniforms_are_of_the_seed(of_block: OfBlock) -> None:
    """Neither other conditions nor another rate move a draw: what 0.1 drops, 0.3 drops too."""
    alone = block_of(of_block, {"label": 0.1})["label"] < 0
    beside = block_of(of_block, {"group": 0.7, "label": 0.1})["label"] < 0
    more = block_of(of_block, {"label": 0.3})["label"] < 0
    assert torch.equal(alone, beside)
    assert bool((more | ~alone).all())
    for other in ({"seed": 1}, {"block": 1}):
        assert not torch.equal(alone, block_of(of_block, {"label": 0.1}, **other)["label"] < 0)


DROPOUT = [
    law_classes_are_those_of_the_rows,
    law_rate_is_the_share_dropped,
    law_conditions_are_dropped_independently,
    law_uniforms_are_of_the_seed,
]


@pytest.mark.parametrize("law", DROPOUT)
def test_dropout_obeys(law: Callable[[OfBlock], None]) -> None:
    law(conditions.block_classes)


def dropping(
    kept: Callable[[Tensor, Tensor, float], Tensor] = conditions.drop,
    stream: Callable[[int, str, int], tuple[int, str, int]] = lambda *given: given,
    rows: Callable[[Tensor], Tensor] = lambda index: index,
) -> OfBlock:
    """Dropout with another rule, from another stream, or with the classes of other rows."""

    def of_block(classes: Any, rates: Any, seed: int, block: int, index: Tensor) -> Any:
        return {
            name: kept(
                classes[name][rows(index)],
                conditions.uniforms(*stream(seed, name, block), tuple(index.shape)),
                rate,
            )
            for name, rate in rates.items()
        }

    return of_block


def one_stream(classes: Any, rates: Any, seed: int, block: int, index: Tensor) -> Any:
    generator = torch.Generator().manual_seed(seed + 1000 * block)
    return {
        name: conditions.drop(
            classes[name][index],
            torch.rand(index.shape, generator=generator, dtype=torch.float64),
            rate,
        )
        for name, rate in rates.items()
    }


WRONG_DROPOUT = {
    "kept at the rate": (
        dropping(lambda y, u, rate: torch.where(u < 1 - rate, -1, y)),
        law_rate_is_the_share_dropped,
    ),
    "never": (dropping(lambda y, u, rate: y), law_rate_is_the_share_dropped),
    "dropped at rate 0": (
        dropping(lambda y, u, rate: torch.where(u <= max(rate, 1e-3), -1, y)),
        law_rate_is_the_share_dropped,
    ),
    "whole batches": (
        dropping(lambda y, u, rate: torch.where(u[:, :1] < rate, -1, y)),
        law_rate_is_the_share_dropped,
    ),
    "class 0 for none": (
        dropping(lambda y, u, rate: torch.where(u < rate, 0, y)),
        law_rate_is_the_share_dropped,
    ),
    "all conditions at once": (
        dropping(stream=lambda seed, name, block: (seed, "one", block)),
        law_conditions_are_dropped_independently,
    ),
    "one stream for all conditions": (one_stream, law_uniforms_are_of_the_seed),
    "the same in every block": (
        dropping(stream=lambda seed, name, block: (seed, name, 0)),
        law_uniforms_are_of_the_seed,
    ),
    "the same for every seed": (
        dropping(stream=lambda seed, name, block: (0, name, block)),
        law_uniforms_are_of_the_seed,
    ),
    "classes of other rows": (
        dropping(rows=lambda index: index.flip(1)),
        law_classes_are_those_of_the_rows,
    ),
}


@pytest.mark.parametrize("mistake", WRONG_DROPOUT)
def test_mistakes_in_dropout_are_caught(mistake: str) -> None:
    found, law = WRONG_DROPOUT[mistake]
    with pytest.raises(AssertionError):
        law(found)


# --- training -----------------------------------------------------------------------------------


def law_always_dropped_is_unconditional() -> None:
    """With rate 1 the other weights are, bit for bit, those of the unconditional training."""
    plain = weights(training_job({}))
    found = weights(training_job({"label": 1.0, "group": 1.0}))
    assert {key for key in found if key not in plain} == {
        "conditions.label.weight",
        "conditions.group.weight",
    }
    assert all(torch.equal(found[key], value) for key, value in plain.items())
    assert not any(bool(found[key].any()) for key in found if key not in plain)


def law_network_sees_the_classes() -> None:
    """What the network is given, step by step: the dropped classes of the rows that are drawn."""
    one = training_job({"label": 0.3, "group": 0.0}, steps=60)
    seen: list[Mapping[str, Tensor]] = []
    inner = one.denoiser.network
    alone = trainer(one)

    def listening(x: Tensor, c_noise: Tensor, condition: Any) -> Tensor:
        seen.append({name: y.clone() for name, y in condition.items()})
        return inner(x, c_noise, condition)

    alone.network = Listening(listening)
    for _ in alone:
        pass
    assert len(seen) == 60
    for step, found in enumerate(seen):
        block, offset = divmod(step, BLOCK)
        index = trainers.draws(one.seed, block, 16, len(data().train), data().shape).indices
        wanted = conditions.block_classes(
            data().condition("train", one.conditions), one.conditions, one.seed, block, index
        )
        assert {n: y.tolist() for n, y in found.items()} == {
            n: y[offset].tolist() for n, y in wanted.items()
        }


class Listening(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Tensor:
        return self.function(*inputs)


def law_batched_is_one_by_one() -> None:
    """Trials with rates of their own, as one: each step's losses are those of the trial alone."""
    rates: list[Mapping[str, float]] = [
        {"label": 0.0, "group": 0.5},
        {"group": 0.2, "label": 0.9},
        {"label": 1.0, "group": 1.0},
    ]
    trials = [
        training_job(rate, seed, name)
        for seed, (rate, name) in enumerate(zip(rates, ("edm", "eps", "v"), strict=True))
    ]
    together = Batch([copied(one) for one in trials], data(), CPU)
    found = list(together.windows())
    for i, one in enumerate(trials):
        alone = trainer(one)
        for row, rows in zip(alone, found, strict=True):
            mine = rows[i]
            assert mine is not None
            # Adam's first steps are of size learning_rate whatever the gradient: rounding of a
            # gradient near 0 moves a weight by as much, see test_batch.
            assert mine.loss == pytest.approx(row.loss, rel=2e-4)
        assert torch.allclose(together.ema[i], alone.ema[0], rtol=0, atol=2e-4)


def copied(one: TrainingJob) -> TrainingJob:
    return training_job(
        one.conditions, one.seed, one.denoiser.parameterization.name, steps=one.training.steps
    )


@pytest.mark.slow
def test_a_condition_that_is_always_dropped_changes_nothing() -> None:
    law_always_dropped_is_unconditional()


@pytest.mark.slow
def test_the_network_is_given_the_classes_of_its_batch() -> None:
    law_network_sees_the_classes()


@pytest.mark.slow
def test_conditional_trials_train_as_one_batch() -> None:
    law_batched_is_one_by_one()


def swapped(*arguments: Any) -> dict[str, Tensor]:
    """The conditions of the seed 0 for everyone."""
    classes, rates, _, block, index = arguments
    return conditions.block_classes(classes, rates, 0, block, index)


def unconditional(*arguments: Any, condition: Any = None, **given: Any) -> Tensor:
    return losses(*arguments, **given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("law", "module", "name", "wrong"),
    [
        pytest.param(
            law_always_dropped_is_unconditional,
            trainers,
            "block_classes",
            dropping(lambda y, u, rate: torch.where(u < rate, 0, y)),
            id="class 0 for none",
        ),
        pytest.param(
            law_network_sees_the_classes,
            trainers,
            "losses",
            lambda *a: losses(*a[:6], {n: y.flip(0) for n, y in a[6].items()}),
            id="classes of other rows",
        ),
        pytest.param(
            law_batched_is_one_by_one, batches, "block_classes", swapped, id="draws of one seed"
        ),
        pytest.param(
            law_batched_is_one_by_one,
            batches,
            "losses",
            lambda *a: losses(*a[:6], None),
            id="conditions left out of a batch",
        ),
    ],
)
def test_mistakes_in_conditional_training_are_caught(
    law: Callable[[], None], module: Any, name: str, wrong: Any
) -> None:
    with mock.patch.object(module, name, wrong), pytest.raises(AssertionError):
        law()


@pytest.mark.slow
def test_training_goes_on_bit_for_bit_from_a_state() -> None:
    whole, first, second = (trainer(training_job({"label": 0.3}, steps=150)) for _ in range(3))
    for _ in whole:
        pass
    next(iter(first))
    second.restore(*first.state())
    for _ in second:
        pass
    assert torch.equal(whole.ema, second.ema)


def test_trials_with_other_conditions_are_not_batched() -> None:
    both = {"label": 0.1, "group": 0.1}
    one, other = training_job({"label": 0.1}, built=both), training_job(both)
    assert unbatchable([one, other]) == "their conditions differ"
    assert unbatchable([training_job(both), training_job({"group": 0.0, "label": 0.7})]) == ""


# --- what a conditional model is measured by ----------------------------------------------------


def law_exact_denoiser_has_no_excess(per_level: Callable[..., pd.DataFrame]) -> None:
    """Given the classes and with all off: the oracle of each is the yardstick, to rounding."""
    held = denoising.held_out_pairs(
        data(), denoising.log_spaced(0.05, 20.0, 5), 64, ["label", "group"]
    )
    found = per_level(exact(), held, CPU, True)
    # F = D in x0 form, rounded to the float32 of x at most.
    size = float(data().test.abs().max()) ** 2 * (4 * U) ** 2
    assert (found["excess"] <= size).all()
    assert (found["excess_dropped"] <= size).all()
    middle = found["sigma"].between(0.5, 2)
    assert (found["loss"] < 0.9 * found["loss_dropped"])[middle].all()


def ignoring(denoiser: Any, held: Any, device: Any, dropped: bool) -> pd.DataFrame:
    without = dataclasses.replace(held, condition=None)
    return denoising.per_level(denoiser, without, device, dropped)


def against_the_other(denoiser: Any, held: Any, device: Any, dropped: bool) -> pd.DataFrame:
    other = dataclasses.replace(held, optimum=held.optimum_dropped, optimum_dropped=held.optimum)
    return denoising.per_level(denoiser, other, device, dropped)


def test_the_exact_conditional_denoiser_has_no_excess() -> None:
    law_exact_denoiser_has_no_excess(denoising.per_level)


@pytest.mark.parametrize("wrong", [ignoring, against_the_other])
def test_mistakes_in_measuring_are_caught(wrong: Callable[..., pd.DataFrame]) -> None:
    with pytest.raises(AssertionError):
        law_exact_denoiser_has_no_excess(wrong)


def test_an_unconditional_model_is_measured_as_before() -> None:
    held = denoising.held_out_pairs(data(), denoising.log_spaced(0.05, 20.0, 3), 16)
    assert (held.condition, held.optimum_dropped) == (None, None)
    assert data().oracle is not None
    x = held.x0 + float(held.sigma[1]) * held.eps
    assert held.optimum is not None
    assert torch.equal(held.optimum[1], data().oracle.denoise(x.double(), held.sigma[1]))


def config(name: str, rates: Mapping[str, float], **options: Any) -> TrialConfig:
    way = REGISTRY.guidance(name, **options)
    return TrialConfig(
        parameterization="v",
        dataset="moons",
        conditions=dict(rates),
        sigma_min=0.01,
        sigma_max=20.0,
        sigma_data=1.0,
        sigma_data_measured=1.0,
        evaluation={"guidance": {"name": name, "options": {**way.defaults, **way.options}}},
    )


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("negative", [-1, 2])
def test_the_exact_denoiser_guided_is_the_exactly_guided_one(scale: float, negative: int) -> None:
    """Guidance on both sides is one: no excess. A model without conditions is D_u on both."""
    held = denoising.held_out_pairs(data(), denoising.log_spaced(0.05, 20.0, 4), 32, ["label"])
    set_ = config("classifier_free", {"label": 0.1}, scale=scale, negative=negative)
    guide = Guide(set_, REGISTRY, data(), exact(), CPU)
    levels = pd.DataFrame({"sigma": held.sigma.numpy()})
    metrics, table = guide.measured(held, levels, np.ones(len(levels), dtype=bool))
    size = float(data().test.abs().max()) ** 2 * (8 * (1 + scale) * U) ** 2
    assert table is None
    assert (levels["excess_guided"] <= size).all()
    assert metrics["excess_guided_nats"] == denoising.integral(levels, "excess_guided", 16)
    deaf = exact(lambda x, sigma, k: data().oracle.denoise(x, sigma))  # type: ignore[union-attr]
    Guide(set_, REGISTRY, data(), deaf, CPU).measured(
        held, levels, np.ones(len(levels), dtype=bool)
    )
    assert float(levels["excess_guided"].max()) > 1e-3


@pytest.mark.slow
def test_a_classifier_is_measured_beside_the_exact_one() -> None:
    held = denoising.held_out_pairs(data(), denoising.log_spaced(0.05, 20.0, 4), 60)
    set_ = config("classifier", {}, steps=400, width=32, depth=1)
    guide = Guide(set_, REGISTRY, data(), exact(), CPU)
    levels = pd.DataFrame({"sigma": held.sigma.numpy()})
    metrics, table = guide.measured(held, levels, np.ones(len(levels), dtype=bool))
    assert table is not None
    assert metrics["classifier_nats"].value == table["kl_nats"].mean()
    assert (table["kl_nats"] > 0).all()
    assert metrics["classifier_nats"].value < 0.1
    # What is wrong is the classifier alone: sigma |g - g*| in eps is sqrt(excess)/sigma.
    rms = np.sqrt(levels["excess_guided"]) / levels["sigma"]
    assert table["gradient_rms"].to_numpy() == pytest.approx(rms.to_numpy(), rel=1e-3)
    assert guide.exact({"label": torch.zeros(2).long()}) is not None


# --- what is refused ----------------------------------------------------------------------------


PLUGIN = """
import testbed
from testbed.networks.mlp import mlp


def of_labels(shape, labels, width=8, depth=1):
    return mlp(shape, {"label": labels} if labels else {}, width, depth)


def of_nothing(shape, width=8, depth=1):
    return mlp(shape, {}, width, depth)


@testbed.hookimpl
def testbed_networks():
    for build in (of_labels, of_nothing):
        yield testbed.Network(build.__name__, build, testbed.Registry().network("mlp").noise)
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> testbed.Registry:
    file = tmp_path_factory.mktemp("plugins") / "networks_of_labels.py"
    file.write_text(PLUGIN)
    return testbed.Registry([str(file)])


planned = functools.partial(studies.planned, CONDITIONAL)


FREE = "evaluation.guidance=classifier_free"
BY = "evaluation.guidance=classifier"
REFUSED = {
    "no such condition": (
        ["conditions.lable=0.1"],
        "--set conditions.lable = 0.1: Unknown condition 'lable'. Did you mean 'label'? Known: "
        "group, label.",
    ),
    "data without labels": (
        ["conditions.label=0.1", "dataset=ring"],
        "--set conditions.label = 0.1: Unknown condition 'label'. Known: none.",
    ),
    "a rate above 1": (["conditions.label=1.5"], "must have dropout rates from 0 to 1"),
    "a rate that is no number": (["conditions.label=often"], 'must be "none", or a table {'),
    "a list of names": (['conditions=["label"]'], 'must be "none", or a table { label = 0.1 }'),
    "a network of labels given another": (
        ["conditions.group=0.1", "network=of_labels"],
        "--set conditions.group = 0.1: network 'of_labels' takes no such condition: its build does "
        "not ask for "
        "conditions.",
    ),
    "a network without conditions": (
        ["conditions.label=0.1", "network=of_nothing"],
        "network 'of_nothing' takes no such condition: its build asks for neither",
    ),
    "an unknown guidance": (
        ["evaluation.guidance=clasifier"],
        "Unknown guidance 'clasifier'. Did you mean 'classifier'?",
    ),
    "an unknown option": (
        ['evaluation.guidance={name="classifier_free", scael=2}'],
        "guidance 'classifier_free': Unknown option 'scael'. Did you mean 'scale'?",
    ),
    "classifier-free without conditions": (
        [FREE],
        "--set evaluation.guidance = 'classifier_free': classifier_free needs a model that is "
        "trained with conditions: write "
        "conditions = { label = 0.1 }.",
    ),
    "classifier-free without classes": (
        [FREE, "dataset=ring"],
        "classifier_free needs a model that is trained with conditions: these data have none.",
    ),
    "classifier-free without dropout": (
        [FREE, "conditions.label=0"],
        "it needs the model with condition 'label' switched off, which conditions.label = 0 never "
        "trains: give it a rate above 0.",
    ),
    "a negative label of no label": (
        ['evaluation.guidance={name="classifier_free", negative=1}', "conditions.group=0.1"],
        "evaluation.guidance.negative = 1 is a label, and conditions has no label.",
    ),
    "a negative label beyond": (
        ['evaluation.guidance={name="classifier_free", negative=4}', "conditions.label=0.1"],
        "evaluation.guidance.negative = 4: expected a label from 0 to 3, or -1 for none.",
    ),
    "a negative label beside what is never dropped": (
        [
            'evaluation.guidance={name="classifier_free", negative=1}',
            "conditions.label=0",
            "conditions.group=0",
        ],
        "it needs the model with condition 'group' switched off",
    ),
    "an infinite scale": (
        ['evaluation.guidance={name="classifier_free", scale=inf}', "conditions.label=0.1"],
        "evaluation.guidance.scale = inf: expected a finite number.",
    ),
    "a scale that is no number": (
        ['evaluation.guidance={name="classifier", scale=nan}'],
        "evaluation.guidance.scale = nan: guidance 'classifier': option scale = nan must be "
        "a number (default 1.0).",
    ),
    "classifier without labels": (
        [BY, "dataset=ring"],
        "evaluation.guidance = 'classifier': classifier needs data with classes: "
        "Unknown condition 'label'.",
    ),
    "classifier of no such condition": (
        ['evaluation.guidance={name="classifier", of="gruop"}'],
        "Unknown condition 'gruop'. Did you mean 'group'?",
    ),
    "classifier with bad settings": (
        ['evaluation.guidance={name="classifier", steps=0}'],
        "evaluation.guidance: steps = 0 is out of range: expected from 1 to 1e+09.",
    ),
    "classifier on a model that always has its label": (
        [BY, "conditions.label=0"],
        "it needs the model with condition 'label' switched off",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_does_not_fit_is_refused_before_training(
    why: str, tmp_path: Path, registry: testbed.Registry
) -> None:
    sets, reason = REFUSED[why]
    assert reason in studies.refusal(CONDITIONAL, tmp_path, *sets, registry=registry)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "sets",
    [
        ["conditions.label=0"],
        ["conditions.label=1", "conditions.group=0.2"],
        ["conditions.label=0.1", "network=of_labels"],
        ["conditions=none", "network=of_nothing"],
        [FREE, "conditions.label=0.1"],
        ['evaluation.guidance={name="classifier_free", negative=3}', "conditions.label=0"],
        [BY],
        [BY, "conditions.label=0.1"],
        ['evaluation.guidance={name="classifier", of="group"}'],
    ],
)
def test_its_neighbour_that_fits_is_planned(
    sets: list[str], tmp_path: Path, registry: testbed.Registry
) -> None:
    assert len(planned(tmp_path, *sets, registry=registry).trials) == 1


def test_guidance_and_conditions_are_in_the_identity_with_their_defaults(
    tmp_path: Path, registry: testbed.Registry
) -> None:
    (one,) = planned(tmp_path, registry=registry).trials
    assert one.config.conditions == {}
    assert one.config.evaluation.guidance == ComponentSpec(name="none")
    text = CONDITIONAL.replace("metrics = [] }", 'metrics = [], guidance = "classifier_free" }')
    (tmp_path / "c.toml").write_text(text)
    words = ["grid.evaluation.guidance.scale=[1, 2.0]", "conditions.label=0.1"]
    found = plan.make(study_file.read(tmp_path / "c.toml", words), registry, tmp_path, "cpu").trials
    assert [t.config.evaluation.guidance.options for t in found] == [
        {"scale": 1.0, "negative": -1, "interval": ()},
        {"scale": 2.0, "negative": -1, "interval": ()},
    ]
    assert len({t.id for t in found}) == 2


def test_data_refuse_conditions_that_are_none() -> None:
    x, y = torch.ones(3, 2), torch.tensor([0, 1, 2])
    with pytest.raises(InputError, match=r"condition 'label' must be an identifier other than"):
        Data(x, x, further={"label": (y, y)})
    with pytest.raises(InputError, match=r"test classes of condition 'kind' have shape \(2,\)"):
        Data(x, x, further={"kind": (y, y[:2])})
    with pytest.raises(InputError, match=r"train classes of condition 'kind' are torch\.float32"):
        Data(x, x, further={"kind": (y.float(), y)})
    found = Data(x, x, further={"kind": (y, y)})
    assert found.classes == {"kind": 3}
    assert Data(x, x).digest != found.digest
    with pytest.raises(UnknownName, match=r"condition 'label'\. Known: kind"):
        found.condition("test", ["label"])


# --- a study ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of conditional models, guided and not, run to its end."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "c.toml").write_text(
        CONDITIONAL.replace("[grid]\n", "conditions = { label = 0.2, group = 0.1 }\n[grid]\n")
        + '"evaluation.guidance" = ["none", "classifier_free", '
        '{ name = "classifier", steps = 20, width = 8, depth = 1 }]\n'
    )
    with trials_only():
        done = run_here(folder, "study", "c.toml", "--no-mlflow", "--jobs", 0, "--device", "cpu")
    assert done.code == 0, done.err
    return folder


def results(folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """By guidance: a trial's folder and its result."""
    found = {}
    for file in folder.glob("runs/c/trials/*/trial.json"):
        name = json.loads(file.read_text())["config"]["evaluation"]["guidance"]["name"]
        found[name] = file.parent, json.loads((file.parent / "result.json").read_text())
    return found


@pytest.mark.slow
def test_a_study_measures_conditional_and_guided_models(ran: Path) -> None:
    found = results(ran)
    metrics = {name: set(result["metrics"]) for name, (_, result) in found.items()}
    plain = {"loss_vs_wiener", "excess_nats", "excess_dropped_nats"}
    assert metrics == {
        "none": plain,
        "classifier_free": plain | {"excess_guided_nats", "guided_error"},
        "classifier": plain | {"excess_guided_nats", "guided_error", "classifier_nats"},
    }
    of_free = found["classifier_free"][1]["metrics"]
    assert of_free["excess_guided_nats"] == of_free["excess_nats"]  # scale 1
    levels = pd.read_csv(found["classifier"][0] / "levels.csv")
    assert {"loss_dropped", "excess_dropped", "excess_guided"} <= set(levels)
    assert len(pd.read_csv(found["classifier"][0] / "classifier.csv")) == 2
    samples = [(at / "samples.safetensors").read_bytes() for at, _ in found.values()]
    assert samples[0] != samples[1] or samples[1] != samples[2]


@pytest.mark.slow
def test_samples_are_drawn_of_a_class(ran: Path) -> None:
    at = results(ran)["none"][0]

    def drawn(*words: object) -> np.ndarray:
        done = run_here(ran, "sample", at, "-n", 5, "--out", "samples.npy", *words)
        assert done.code == 0, done.err
        found: np.ndarray = np.load(ran / "samples.npy")
        return found

    of = [drawn("--condition", f"label={k}", "--condition", f"group={k // 2}") for k in (0, 3)]
    off, held = drawn("--condition", "label=-1"), drawn()
    assert not np.array_equal(of[0], of[1])
    assert not np.array_equal(off, of[0])
    assert np.array_equal(off, drawn("--condition", "group=-1"))
    assert np.array_equal(held, drawn())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["none", "classifier_free", "classifier"])
def test_a_pipeline_draws_what_its_study_drew(ran: Path, method: str) -> None:
    at = results(ran)[method][0]
    denoiser, data_, config, registry = restore.restore(at)
    stored = load_file(at / "samples.safetensors")["samples"]
    held = Guide(config, registry, data_, denoiser, CPU).of_samples(len(stored))
    drawn = testbed.pipeline(at)(len(stored), held, generator=stream(0, "samples"))
    assert torch.equal(drawn, stored)


@pytest.mark.slow
def test_samples_are_drawn_as_the_command_line_says(ran: Path) -> None:
    at = results(ran)["none"][0]
    pipeline = testbed.pipeline(at)
    start = torch.randn(2, *pipeline.shape, generator=stream(1, "start"))
    np.save(ran / "start.npy", start.numpy())
    np.save(ran / "known.npy", np.array([1.0, 0.0], dtype=np.float32))

    def drawn(*words: object) -> Tensor:
        done = run_here(ran, "sample", at, "-n", 2, "--out", "samples.npy", "--seed", 4, *words)
        assert done.code == 0, done.err
        return torch.from_numpy(np.load(ran / "samples.npy"))

    ddim, uniform = REGISTRY.sampler("ddim", eta=0.5), REGISTRY.schedule("uniform")
    given = "--condition", "label=1", "--steps", 3
    label = {"label": 1}
    one, each = stream(4, "draw"), [stream(4, "draw"), stream(5, "draw")]
    assert torch.equal(
        drawn(*given, "--sampler", "ddim", "--eta", 0.5, "--schedule", "uniform", "--seed-each"),
        pipeline(2, label, steps=3, sampler=ddim, schedule=uniform, generator=each),
    )
    assert torch.equal(
        drawn(*given, "--scale", 2, "--interval", 0.1, 1.0, "--negative", "label=0"),
        pipeline(2, label, {"label": 0}, scale=2.0, interval=(0.1, 1.0), steps=3, generator=one),
    )
    files = "--image", "start.npy", "--known", "known.npy", "--strength", 0.7
    found = drawn(*given, *files)
    known = torch.tensor([1.0, 0.0])
    assert torch.equal(
        found,
        pipeline(
            2,
            label,
            steps=3,
            generator=stream(4, "draw"),
            image=start,
            strength=0.7,
            known=known,
        ),
    )
    assert torch.allclose(found[:, 0], start[:, 0], rtol=0, atol=2.0**-15)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sampler", "huen"], "Unknown sampler 'huen'. Did you mean 'heun'?"),
        (["--eta", "0.5"], "eta = 0.5: sampler 'heun' has no such option."),
        (["--negative", "label=1"], "--negative: the trial's guidance is not classifier_free"),
        (["--negative", "label"], "--negative label: expected NAME=CLASS"),
        (["--strength", "0.5"], "strength is that of an image"),
        (["--image", "none.npy"], "none.npy: there is no such file in "),
        (["--image", "c.toml"], "which is no image"),
        (["--steps", "0"], "'--steps'"),
    ],
)
def test_what_cannot_be_drawn_is_told(ran: Path, words: list[str], message: str) -> None:
    done = run_here(ran, "sample", results(ran)["none"][0], "--out", "samples.npy", *words)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_an_image_of_another_size_is_named_with_both_sizes(tmp_path: Path) -> None:
    file = tmp_path / "wide.png"
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(file)
    assert sample.read_image(file, (1, 4, 6), (0.0, 1.0)).shape == (1, 1, 4, 6)
    with pytest.raises(InputError, match=r"wide\.png has 4 x 6 pixels .*, and samples have 8 x 8"):
        sample.read_image(file, (1, 8, 8), (0.0, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["label"], "--condition label: expected NAME=CLASS, such as label=3, or NAME=TEXT."),
        (["label=two"], "label=two is no class, and a text is taken by conditions of texts"),
        (["label=4"], "--condition label=4: expected 0 to 3, or -1 to switch it off."),
        (["lable=1"], "Unknown condition 'lable'. Did you mean 'label'?"),
        (["label=1", "label=2"], "--condition label=2: label is given twice."),
    ],
)
def test_a_condition_that_is_none_is_told(ran: Path, words: list[str], message: str) -> None:
    given = [part for word in words for part in ("--condition", word)]
    done = run_here(ran, "sample", results(ran)["none"][0], "--out", "samples.npy", *given)
    assert done.code == 2
    assert message in done.err


def test_a_condition_that_was_never_dropped_has_to_be_given() -> None:
    with pytest.raises(InputError, match=r"label was never switched off in training.*label=0"):
        class_conditions.chosen({}, {"label": 0.0}, guidance_methods.NoGuidance(), data(), 3)
    found = class_conditions.chosen(
        {"label": 2}, {"label": 0.0, "group": 0.1}, guidance_methods.NoGuidance(), data(), 3
    )
    assert {name: y.tolist() for name, y in found.items()} == {"label": [2] * 3, "group": [-1] * 3}


def test_conditions_of_samples_are_the_same_for_every_trial() -> None:
    one, other = (
        Guide(config(name, {"label": 0.1}), REGISTRY, data(), exact(), CPU)
        for name in ("none", "classifier_free")
    )
    held = one.of_samples(100)["label"]
    assert torch.equal(held, other.of_samples(100)["label"])
    assert data().test_labels is not None
    counts = torch.bincount(held[:60], minlength=4)
    assert torch.equal(counts, torch.bincount(data().test_labels, minlength=4))


def test_draws_are_not_used_up() -> None:
    """A conditional trial sees the batches, noises and levels of an unconditional one."""
    before = trainers.draws(3, 1, 8, 100, (2,))
    conditions.uniforms(3, "label", 1, (BLOCK, 8))
    after = trainers.draws(3, 1, 8, 100, (2,))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_metric_given_conditions_needs_a_model_with_them_and_known_distributions() -> None:
    metric = REGISTRY.metric("conditional_energy")
    known = functools.partial(class_conditions.unmeasured, metric, data=data())
    (said,) = known({})
    assert "is of samples drawn with a condition, and the trial has none" in said
    assert list(known({"label": 0.1})) == []
    (said,) = known({"label": 0.1, "colour": 0.1})
    assert "the exact distributions given 'colour' are not known, those given label" in said
    without = dataclasses.replace(data(), conditional=None)
    assert metric.problems(data()) == []
    (said,) = metric.problems(without)
    assert said.endswith("the data's exact distributions given a condition are not known.")
    with pytest.raises(TypeError, match="needs condition"):
        metric(data().test, data(), stream(0, "metric"))


@pytest.mark.slow
def test_samples_without_guidance_are_of_the_distribution_given_the_condition() -> None:
    """Of the exact denoiser they are at the floor, guided ones at w = 4 are not."""
    set_ = config("classifier_free", {"label": 0.1}, scale=4.0)
    guide = Guide(set_, REGISTRY, data(), exact(), CPU)
    condition = guide.of_samples(120, set_.conditions)
    metric, found = REGISTRY.metric("conditional_energy"), {}
    for w, by in {"1": guide.unguided(condition), "4": guide.trained(condition)}.items():
        x = 80 * torch.randn(120, 16, generator=stream(0, "start"), dtype=torch.float64)
        x = testbed.sample(by, x, testbed.noise_levels.karras_sigmas(18), "heun")
        found[w] = metric.estimate(x, data(), stream(0, "metric"), condition)
    assert abs(found["1"].value) < 4 * found["1"].error
    assert found["4"].value > 4 * found["4"].error
