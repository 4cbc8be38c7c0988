"""Weights of other codebases: prefixes, averages, a strict comparison, and no pickles."""

from __future__ import annotations

import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from testbed.checkpoints.weights import load_weights
from testbed.errors import InputError


class Net(nn.Module):
    """A network with parameters, a buffer and nested names."""

    def __init__(self, seed: int = 0, width: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.blocks = nn.ModuleList([nn.Linear(2, width), nn.Linear(width, 2)])
        self.register_buffer("frequencies", torch.randn(4, generator=generator))
        for one in self.parameters():
            one.data = torch.randn(one.shape, generator=generator)


def same(one: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(one.state_dict()[name], value) for name, value in state.items())


def before(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


WEIGHTS, AVERAGE = Net(1).state_dict(), Net(2).state_dict()
WITHOUT_DOTS = {
    f"model_ema.diffusion_model{name}".replace(".", "").replace("model_ema", "model_ema.", 1): value
    for name, value in AVERAGE.items()
    if name != "frequencies"
} | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
LDM = {
    **before("model.diffusion_model.", WEIGHTS),
    **WITHOUT_DOTS,
    "first_stage_model.encoder.weight": torch.zeros(2),
}
LAYOUTS: dict[str, tuple[Any, dict[str, str], dict[str, Tensor]]] = {
    "plain": (WEIGHTS, {}, WEIGHTS),
    "of DistributedDataParallel": (before("module.", WEIGHTS), {}, WEIGHTS),
    "compiled and distributed": (before("module._orig_mod.", WEIGHTS), {}, WEIGHTS),
    "latent diffusion": (
        LDM,
        {"prefix": "model.diffusion_model.", "average": "none"},
        WEIGHTS,
    ),
    "latent diffusion's average": (
        LDM,
        {"prefix": "model.diffusion_model.", "average": "model_ema"},
        {**AVERAGE, "frequencies": WEIGHTS["frequencies"]},
    ),
    "model, ema": (
        {"model": WEIGHTS, "ema": AVERAGE, "step": 7},
        {"average": "ema"},
        AVERAGE,
    ),
    "model, ema: the weights": (
        {"model": WEIGHTS, "ema": AVERAGE, "opt": {"state": [torch.zeros(2)]}},
        {"average": "none", "prefix": "model."},
        WEIGHTS,
    ),
    "a compiled average": (
        {"model": WEIGHTS, "ema": before("_orig_mod.", AVERAGE)},
        {"average": "ema"},
        AVERAGE,
    ),
    "k-diffusion's average": (
        {"model": before("inner_model.", WEIGHTS), "model_ema": before("inner_model.", AVERAGE)},
        {"average": "none", "prefix": "model.inner_model."},
        WEIGHTS,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_every_layout_is_read(tmp_path: Path, layout: str, suffix: str) -> None:
    content, words, wanted = LAYOUTS[layout]
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(content, file)
    else:
        flat = {
            f"{head}.{name}": value
            for head, inner in content.items()
            if isinstance(inner, dict)
            for name, value in inner.items()
            if isinstance(value, Tensor)
        } or content
        save_file({name: value.clone() for name, value in flat.items()}, file)
    network = Net(5)
    load_weights(network, file, **words)
    assert same(network, wanted)


REFUSED: dict[str, tuple[Any, dict[str, str], str]] = {
    "a choice is needed": (
        LDM,
        {"prefix": "model.diffusion_model."},
        'the file has averages besides the weights themselves: average = "model_ema", "none"',
    ),
    "another average": (
        {"ema": AVERAGE, "model": WEIGHTS},
        {"average": "emma"},
        r"no name begins with 'emma'. Did you mean 'ema'\?",
    ),
    "another prefix": (
        before("model.diffusion_model.", WEIGHTS),
        {"prefix": "modle."},
        r"no name of the file has it. Did you mean 'model.'\?",
    ),
    "a prefix that is missing": (
        before("model.diffusion_model.", WEIGHTS),
        {},
        r"5 missing: .*; 5 unexpected: .* prefix = 'model.diffusion_model.'\?",
    ),
    "a name that is missing": (
        {name: value for name, value in WEIGHTS.items() if name != "blocks.1.bias"},
        {},
        r"1 missing: blocks\.1\.bias\.",
    ),
    "a name with a slip": (
        {name.replace("frequencies", "frequencys"): value for name, value in WEIGHTS.items()},
        {},
        "1 missing: frequencies, for 'frequencys'; 1 unexpected: frequencys, for 'frequencies'",
    ),
    "another shape": (
        Net(0, width=4).state_dict(),
        {},
        r"other shapes: blocks.0.weight is \(4, 2\), expected \(3, 2\)",
    ),
    "no tensor": ({"step": 3}, {}, "holds no tensors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_exactly_the_networks_is_refused(tmp_path: Path, case: str) -> None:
    content, words, said = REFUSED[case]
    torch.save(content, tmp_path / "weights.pt")
    network = Net(5)
    with pytest.raises(InputError, match=said):
        load_weights(network, tmp_path / "weights.pt", **words)
    assert same(network, Net(5).state_dict())


def test_pickled_objects_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    torch.save({"ema": Net(1), "args": Namespace(lr=1)}, tmp_path / "model.ckpt")
    (tmp_path / "network.pkl").write_bytes(pickle.dumps({"ema": Namespace(lr=1)}))
    for name in ("model.ckpt", "network.pkl"):
        with pytest.raises(InputError) as problem:
            load_weights(Net(), tmp_path / name)
        said = str(problem.value)
        assert f"{name} holds pickled objects" in said
        assert "safetensors.torch.save_file(" in said


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 cut")
    for name, said in {
        "broken.safetensors": "broken.safetensors cannot be read",
        "broken.pt": "broken.pt",
        "brocken.pt": r"there is no such file in .*Did you mean '.*broken.pt'\?",
    }.items():
        with pytest.raises(InputError, match=said):
            load_weights(Net(), tmp_path / name)


def test_two_names_that_are_one_without_dots_are_refused(tmp_path: Path) -> None:
    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("a1", torch.zeros(1))
            self.a = nn.Module()
            self.a.register_buffer("1", torch.zeros(1))

    content = {"model.diffusion_model.a1": torch.zeros(1), "model_ema.x": torch.zeros(1)}
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"a1 and a\.1 are one name without dots"):
        load_weights(Twin(), tmp_path / "weights.pt", average="model_ema")
