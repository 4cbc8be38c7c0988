"""The transformer against diffusers' DiTTransformer2DModel, and its options."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import testbed
from testbed.components.condition import ConditionTable
from testbed.errors import InputError
from testbed.networks.dit import DiT, positions
from testbed.networks.embeddings import Sinusoids
from testbed.random import stream
from testbed.testing.cases import awaken

C, SIZE, WIDTH, DEPTH, HEADS, CLASSES, B = 3, 8, 24, 3, 4, 5, 6
RELATIVE = 1e-10
"""Wanted in float64: some thousand roundings of 1e-16 lie between input and gradient."""


def dit(shape: tuple[int, ...] = (C, SIZE, SIZE), **more: Any) -> DiT:
    options = {"width": WIDTH, "depth": DEPTH, "heads": HEADS} | more.pop("options", {})
    network = testbed.Registry().network("dit", **options)
    module = network(shape, more.pop("labels", CLASSES), 0, noise_kind="index", **more)
    awaken(module)
    assert isinstance(module, DiT)
    return module.eval()


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """x, indices of levels and classes, one of them off."""
    generator = stream(0, "tests/dit")
    x = torch.randn(B, C, SIZE, SIZE, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.tensor([0.0, 1.0, 17.0, 250.0, 998.0, 999.0]), torch.tensor([0, 1, 2, 3, 4, -1])


class Waves(nn.Module):
    """cos and sin of w_k t with w_k = 10000^(-k/127), in float64; diffusers' own is in float32."""

    def forward(self, t: Tensor) -> Tensor:
        k = torch.arange(128, dtype=torch.float64)
        phase = t.double()[:, None] * 10_000.0 ** (-k / 127)
        return torch.cat([phase.cos(), phase.sin()], 1)


def mapped(mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names that diffusers has for them; every block has its own embeddings."""
    found = {
        "pos_embed.proj.weight": mine["first.weight"].view(WIDTH, C, 2, 2),
        "pos_embed.proj.bias": mine["first.bias"],
    }
    for end in ("weight", "bias"):
        found[f"proj_out_1.{end}"] = mine[f"modulation.{end}"]
        found[f"proj_out_2.{end}"] = mine[f"last.{end}"]
    for i in range(DEPTH):
        theirs, ours = f"transformer_blocks.{i}", f"blocks.{i}"
        embeddings = f"{theirs}.norm1.emb"
        found[f"{embeddings}.class_embedder.embedding_table.weight"] = mine[
            "conditions.label.weight"
        ]
        for end in ("weight", "bias"):
            k, v = mine[f"{ours}.attention.key_value.{end}"].chunk(2)
            found |= {
                f"{embeddings}.timestep_embedder.linear_1.{end}": mine[f"noise.inner.{end}"],
                f"{embeddings}.timestep_embedder.linear_2.{end}": mine[f"noise.outer.{end}"],
                f"{theirs}.norm1.linear.{end}": mine[f"{ours}.modulation.{end}"],
                f"{theirs}.attn1.to_q.{end}": mine[f"{ours}.attention.query.{end}"],
                f"{theirs}.attn1.to_k.{end}": k,
                f"{theirs}.attn1.to_v.{end}": v,
                f"{theirs}.attn1.to_out.0.{end}": mine[f"{ours}.attention.out.{end}"],
                f"{theirs}.ff.net.0.proj.{end}": mine[f"{ours}.inner.{end}"],
                f"{theirs}.ff.net.2.{end}": mine[f"{ours}.outer.{end}"],
            }
    return found


def back(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients by our names; those of the embeddings, one in each block of diffusers, add up."""
    found = {
        "first.weight": theirs["pos_embed.proj.weight"].flatten(1),
        "first.bias": theirs["pos_embed.proj.bias"],
    }
    blocks = [f"transformer_blocks.{i}" for i in range(DEPTH)]
    embeddings = [f"{block}.norm1.emb" for block in blocks]
    found["conditions.label.weight"] = sum(
        (theirs[f"{one}.class_embedder.embedding_table.weight"] for one in embeddings),
        torch.zeros(()),
    )
    for end in ("weight", "bias"):
        found[f"modulation.{end}"] = theirs[f"proj_out_1.{end}"]
        found[f"last.{end}"] = theirs[f"proj_out_2.{end}"]
        for ours, layer in (("inner", "linear_1"), ("outer", "linear_2")):
            names = [f"{one}.timestep_embedder.{layer}.{end}" for one in embeddings]
            found[f"noise.{ours}.{end}"] = sum((theirs[n] for n in names), torch.zeros(()))
        for i, block in enumerate(blocks):
            k, v = (theirs[f"{block}.attn1.to_{part}.{end}"] for part in "kv")
            found |= {
                f"blocks.{i}.modulation.{end}": theirs[f"{block}.norm1.linear.{end}"],
                f"blocks.{i}.attention.query.{end}": theirs[f"{block}.attn1.to_q.{end}"],
                f"blocks.{i}.attention.key_value.{end}": torch.cat([k, v]),
                f"blocks.{i}.attention.out.{end}": theirs[f"{block}.attn1.to_out.0.{end}"],
                f"blocks.{i}.inner.{end}": theirs[f"{block}.ff.net.0.proj.{end}"],
                f"blocks.{i}.outer.{end}": theirs[f"{block}.ff.net.2.{end}"],
            }
    return found


def reference(mine: DiT, outputs: int, exact_waves: bool = True) -> Any:
    """diffusers' module with these weights, in evaluation, where it drops no class."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=C,
        out_channels=outputs,
        num_layers=DEPTH,
        sample_size=SIZE,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,
    ).to(mine.last.weight.dtype)
    weights = mapped(mine.state_dict())
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"pos_embed.pos_embed"}  # a buffer, which some versions keep
    # Both are the float32 of one formula, and may differ by its last bit.
    places = theirs.pos_embed.pos_embed
    assert float((places[0] - mine.places).abs().max()) <= 2.0**-22
    places.copy_(mine.places)
    for block in theirs.transformer_blocks if exact_waves else ():
        block.norm1.emb.time_proj = Waves()
    return theirs.eval()


def far(found: Tensor, wanted: Tensor) -> float:
    """The largest difference over the largest number."""
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [{"F": C}, {"F": C, "nu": C}])
def test_output_and_gradients_are_those_of_diffusers(outputs: dict[str, int]) -> None:
    mine = dit(outputs=outputs).double()
    mine.noise.waves = Waves()  # type: ignore[assignment]
    x, t, y = inputs()
    theirs = reference(mine, sum(outputs.values()))
    goal = torch.randn(B, sum(outputs.values()), SIZE, SIZE, generator=stream(0, "goal")).double()
    left, right = x.clone().requires_grad_(), x.clone().requires_grad_()
    F = mine(left, t, {"label": y})
    # The row after the last class is diffusers' class for none.
    wanted = theirs(right, t, torch.where(y < 0, CLASSES, y)).sample
    assert far(F, wanted) < RELATIVE
    (F * goal).sum().backward()
    (wanted * goal).sum().backward()
    assert far(left.grad, right.grad) < RELATIVE  # type: ignore[arg-type]
    found = {name: p.grad for name, p in mine.named_parameters()}
    expected = back({name: p.grad for name, p in theirs.named_parameters()})
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert far(found[name], gradient) < RELATIVE, name  # type: ignore[arg-type]


def test_in_float32_it_is_diffusers_own_module_with_its_own_waves() -> None:
    mine = dit(outputs={"F": C})
    x, t, y = inputs(torch.float32)
    wanted = reference(mine, C, exact_waves=False)(x, t, torch.where(y < 0, CLASSES, y)).sample
    # A phase of 999 radians is rounded by 6e-5.
    assert far(mine(x, t, {"label": y}), wanted) < 1e-3


def test_waves_are_those_of_an_index() -> None:
    t = torch.tensor([0.0, 1.0, 31.0])
    found = Sinusoids(128, "index")(t)
    # logspace, product and wave are each rounded; the phase is at most 31.
    assert float((found - Waves()(t)).abs().max()) < 31 * 8 * 2.0**-24


def test_units_put_the_levels_of_every_kind_apart() -> None:
    t = torch.tensor([0.3])
    for kind, unit in (("time", 1000.0), ("sigma", 64.0), ("log_sigma", 250.0)):
        waves = Sinusoids(16, kind).double()
        k = torch.arange(16, dtype=torch.float64)
        phase = 0.3 * unit * 10_000.0 ** (-k / 15)
        expected = torch.cat([phase.cos(), phase.sin()])
        assert float((waves(t.double())[0] - expected).abs().max()) < unit * 1e-6


def test_positions_tell_rows_from_columns() -> None:
    found = positions(2, 3, 8).double()
    row, column, w = 1, 2, torch.tensor([1.0, 0.01], dtype=torch.float64)
    expected = torch.cat([(column * w).sin(), (column * w).cos(), (row * w).sin(), (row * w).cos()])
    assert float((found[row * 3 + column] - expected).abs().max()) < 1e-6


@pytest.mark.slow
def test_a_bottleneck_is_a_product_of_matrices() -> None:
    """A patch passes two linear layers without an activation, as one of their product."""
    narrow = dit(options={"bottleneck": 2}, labels=0).double()
    one = dit(labels=0).double()
    weights = {n: p for n, p in narrow.state_dict().items() if not n.startswith("first.")}
    missing, _ = one.load_state_dict(weights, strict=False)
    assert missing == ["first.weight", "first.bias"]
    inner, outer = narrow.first[0], narrow.first[1]  # type: ignore[index]
    with torch.no_grad():
        one.first.weight.copy_(outer.weight @ inner.weight)  # type: ignore[operator, union-attr]
        one.first.bias.copy_(outer.bias)  # type: ignore[operator, union-attr]
    assert torch.linalg.matrix_rank(one.first.weight) == 2  # type: ignore[arg-type]
    x, t, _ = inputs()
    assert far(narrow(x, t), one(x, t)) < RELATIVE


@pytest.mark.slow
def test_a_skip_adds_a_multiple_of_x_to_F_alone() -> None:
    module = dit(options={"skip": True}, labels=0, outputs={"F": C, "nu": C}).double()
    plain = dit(labels=0, outputs={"F": C, "nu": C}).double()
    plain.load_state_dict({n: module.state_dict()[n] for n in plain.state_dict()})
    x, t, _ = inputs()
    added = module(x, t) - plain(x, t)
    gain = added[:, :C] / x
    assert bool((added[:, C:] == 0).all())
    assert float((gain - gain[:, :, :1, :1]).abs().max()) < 1e-9
    assert float(gain[:, :, 0, 0].std(0).min()) > 0


@pytest.mark.parametrize("tokens", ["cross", "sequence"])
def test_the_order_of_tokens_does_not_matter_and_padding_is_not_seen(tokens: str) -> None:
    """Attention is a sum over tokens."""
    rows = torch.randn(2, 4, 5, generator=stream(0, "tokens"))
    mask = torch.tensor([[True, True, True, False], [True, True, False, True]])
    rows[1] = rows[0][[2, 0, 3, 1]]
    table = ConditionTable("tokens", rows, mask)
    module = dit(options={"tokens": tokens}, labels=0, tables={"text": table}).double()
    x, t, _ = inputs()
    first, second = (module(x, t, {"text": torch.full((B,), i)}) for i in (0, 1))
    assert far(first, second) < RELATIVE
    assert far(first, module(x, t)) > 1e-3


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"width": 30}, (3, 8, 8), "width = 30 must be divisible by 4"),
        ({"heads": 5}, (3, 8, 8), "by heads = 5"),
        ({"depth": 0}, (3, 8, 8), "must be positive"),
        ({"patch": 3}, (3, 8, 8), "multiples of the patch"),
        ({}, (3,), "it takes images"),
        ({"bottleneck": -1}, (3, 8, 8), "expected 0 for none, or more"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    options: dict[str, int], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        dit(shape, options=options)


@pytest.mark.slow
def test_the_paper_s_smallest_has_its_number_of_parameters() -> None:
    """DiT-S/2 on latents of 4 x 32 x 32, learned variance, 1000 classes: 33 million (table 1)."""
    network = testbed.Registry().network("dit", width=384, depth=12, heads=6, patch=2)
    with torch.device("meta"):
        module = network.build(
            (4, 32, 32), {"label": 1000}, {}, {"F": 4, "nu": 4}, "index", False, False,
            384, 12, 6, 2,
        )  # fmt: skip
    assert math.isclose(sum(p.numel() for p in module.parameters()), 33e6, rel_tol=0.02)
