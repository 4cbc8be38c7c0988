"""Inception, DINOv2 and the backbones of LPIPS: their layout, their weights, their features."""

import math
from pathlib import Path

import pytest
import torch
from laws.feature_distances import TINY, tiny_lpips
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

import testbed
from testbed.errors import InputError
from testbed.metrics import frechet
from testbed.metrics.features import images, inception, perceptual, weights
from testbed.random import stream
from testbed.registry import default_registry

REGISTRY = default_registry()


def pictures(n: int, side: int, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(n, channels, side, side, generator=generator) - 1


def drawn(network: nn.Module) -> dict[str, Tensor]:
    """A state with weights of a size that keeps activations in range, and positive variances."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            continue
        value = torch.randn(tensor.shape, generator=generator)
        fan_in = max(1, tensor[0].numel()) if tensor.ndim > 1 else 10
        positive = name.endswith("var") or name.startswith("lin")
        state[name] = (value.abs() + 0.5) if positive else value * math.sqrt(2 / fan_in)
    return state


# --- pixels -----------------------------------------------------------------------------------


def test_black_and_white_become_0_and_1_and_grey_has_equal_channels() -> None:
    grey = torch.tensor([[[-1.0, 0.0], [1.0, 3.0]]])
    found = images.pictures(grey, -1.0, 1.0)
    assert found.shape == (1, 3, 2, 2)
    assert found[0, 2].tolist() == [[0.0, 0.5], [1.0, 1.0]]
    assert torch.equal(images.pictures(grey[:, None], -1.0, 1.0), found)
    colours = pictures(2, 4)
    assert torch.allclose(images.pictures(colours, -1.0, 1.0), (colours + 1) / 2)
    assert torch.allclose(images.pictures(255 * colours, -255.0, 255.0), (colours + 1) / 2)
    mean = torch.tensor(images.IMAGENET[0]).view(1, 3, 1, 1)
    assert images.standardised(mean.expand(1, 3, 2, 2)).abs().max() == 0


# --- weights ----------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Linear(2, 3), nn.BatchNorm1d(3)


def test_weights_are_placed_and_every_key_and_shape_is_compared(tmp_path: Path) -> None:
    right = drawn(Two())
    file = tmp_path / "w.safetensors"
    save_file({**right, "norm.num_batches_tracked": torch.tensor(3)}, file)
    before = torch.get_rng_state()
    found = weights.read(Two, file, "It is W.")
    assert torch.equal(torch.get_rng_state(), before)
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())
    assert torch.equal(found.a.weight, right["a.weight"])
    for change, message in (
        ({"a.bias": None}, r"it lacks a\.bias\. It is W\."),
        ({"c": torch.ones(1)}, r"it has beside c\. It is W\."),
        ({"a.bias": torch.ones(4)}, r"in another shape a\.bias \(4,\) for \(3,\)\. It is W\."),
    ):
        state = {k: v for k, v in {**right, **change}.items() if v is not None}
        save_file(state, file)
        with pytest.raises(InputError, match=message):
            weights.read(Two, file, "It is W.")
    assert weights.read(Two, _saved({**right, "c.d": torch.ones(1)}, file), "", (r"c\.",)).a
    file.write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"cannot be read as safetensors .* It is W\."):
        weights.read(Two, file, "It is W.")


def _saved(state: dict[str, Tensor], file: Path) -> Path:
    save_file(state, file)
    return file


# --- Inception --------------------------------------------------------------------------------


def test_inception_has_the_size_that_is_published() -> None:
    """23,834,568 numbers with 1000 classes and without the auxiliary ones (timm, torchvision)."""
    with torch.device("meta"):
        network = inception.Inception()
    # Eight further classes of 2048 weights and a bias.
    numbers = sum(p.numel() for p in network.parameters())
    assert numbers == 23_834_568 + 8 * 2049


def test_inception_is_torchvisions_but_for_its_pooling(monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    other = models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False).eval()
    state = drawn(other)
    other.load_state_dict(state, strict=False)
    monkeypatch.setattr(inception, "average", lambda x: avg_pool2d(x, 3, 1, 1))
    monkeypatch.setattr(inception, "largest", inception.average)
    network = inception.Inception().eval()
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert unexpected == []
    assert all(key.endswith("num_batches_tracked") for key in missing)
    other.fc = nn.Identity()
    x = pictures(2, 299)
    with torch.no_grad():
        ours, theirs = network(x), other(x)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_the_pooling_of_inception_is_that_of_fid() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]]).view(1, 1, 2, 2)
    # All four pixels lie in every window; the padding is not counted.
    assert inception.average(x).flatten().tolist() == [3.0] * 4
    assert inception.largest(x).flatten().tolist() == [6.0] * 4
    with torch.device("meta"):
        network = inception.Inception()
    assert network.Mixed_7b.pool is inception.average
    assert network.Mixed_7c.pool is inception.largest


@pytest.mark.slow
def test_fid_is_the_frechet_distance_of_inceptions_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inception, "SIDE", 75)
    network = inception.Inception().eval()
    state = drawn(network)
    network.load_state_dict(state, strict=False)
    file = _saved(state, tmp_path / "w.safetensors")
    data = testbed.Data(pictures(4, 12), pictures(6, 12, seed=1))
    metric = REGISTRY.metric("fid", weights=str(file))
    assert metric.problems(data) == []
    samples = pictures(5, 12, seed=2) / 2
    found = metric.estimate(samples, data, stream(0, "test"))
    with torch.no_grad():
        x, y = (
            network(2 * interpolate((one + 1) / 2, (75, 75), mode="bilinear") - 1).double()
            for one in (samples, data.test)
        )
    assert found.value == pytest.approx(frechet.squared_distance(x, y), rel=1e-6)
    assert found.error > 0
    samples[1, 0, 0, 0] = math.nan
    assert math.isnan(metric(samples, data, stream(0, "test")))
    save_file({**state, "fc.weight": torch.zeros(1000, 2048)}, file)
    with pytest.raises(InputError, match=r"fc\.weight \(1000, 2048\) for \(1008, 2048\)"):
        inception.features(str(file))


# --- LPIPS ------------------------------------------------------------------------------------


def test_the_backbones_have_the_sizes_that_are_published() -> None:
    """Simonyan and Zisserman 2015, table 2, without the layers behind; AlexNet of torchvision."""
    # 138,357,544 and 61,100,840 numbers in all.
    behind = {
        "vgg": 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000,
        "alex": 9216 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000,
    }
    whole = {"vgg": 138_357_544, "alex": 61_100_840}
    for name, layout in perceptual.LAYOUTS.items():
        with torch.device("meta"):
            network = perceptual.Lpips(layout)
        numbers = sum(p.numel() for p in network.features.parameters())
        assert numbers + behind[name] == whole[name]
        assert all(isinstance(network.features[tap], nn.ReLU) for tap in network.taps)
    widths = [network.get_parameter(f"lin{k}.model.1.weight").shape[1] for k in range(5)]
    assert widths == [64, 192, 384, 256, 256]


@pytest.mark.parametrize("backbone", ["vgg", "alex"])
def test_the_backbones_are_torchvisions(backbone: str) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    other = {"vgg": models.vgg16, "alex": models.alexnet}[backbone]().features
    network = perceptual.Lpips(perceptual.LAYOUTS[backbone])
    network.features.load_state_dict(other.state_dict())
    side = perceptual.LAYOUTS[backbone].least
    x = pictures(1, 2 * side)
    shift, scale = (torch.tensor(one).view(1, 3, 1, 1) for one in
                    (perceptual.SHIFT, perceptual.SCALE))  # fmt: skip
    h = (2 * x - 1 - shift) / scale
    found = network.activations(x)
    for n, layer in enumerate(other[: max(network.taps) + 1]):
        h = layer(h)
        if n in network.taps:
            assert torch.equal(found.pop(0), h)
    assert found == []


@pytest.mark.parametrize("backbone", ["vgg", "alex"])
def test_the_smallest_image_passes_and_a_smaller_one_does_not(backbone: str) -> None:
    layout = perceptual.LAYOUTS[backbone]
    with torch.device("meta"):
        network = perceptual.Lpips(layout)
        network.features(torch.zeros(1, 3, layout.least, layout.least))
        with pytest.raises(RuntimeError):
            network.features(torch.zeros(1, 3, layout.least - 1, layout.least - 1))


def test_lpips_is_that_to_the_nearest_held_out_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(perceptual.LAYOUTS, "vgg", TINY)
    network = tiny_lpips().float()
    state = {**network.state_dict(), "classifier.0.weight": torch.ones(2)}
    file = _saved(state, tmp_path / "w.safetensors")
    data = testbed.Data(pictures(4, 8, channels=1), pictures(6, 8, channels=1, seed=1))
    metric = REGISTRY.metric("lpips", weights=str(file))
    assert metric.problems(data) == []
    samples = pictures(5, 8, channels=1, seed=2)
    found = metric.estimate(samples, data, stream(0, "test"))
    unit = [images.pictures(one, -1.0, 1.0) for one in (samples, data.test)]
    nearest = [
        min(float(perceptual.distance(network, x[None], y[None])) for y in unit[1]) for x in unit[0]
    ]
    assert found.value == pytest.approx(sum(nearest) / 5, rel=1e-5)
    assert found.error > 0
    assert metric(data.test[:3], data, stream(0, "test")) == pytest.approx(0, abs=1e-9)
    negative = {**state, "lin1.model.1.weight": -state["lin1.model.1.weight"]}
    with pytest.raises(InputError, match="weighs a layer by less than 0"):
        perceptual.features(str(_saved(negative, file)), "vgg")


# --- DINOv2 -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of random weights."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.Dinov2Config(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    folder = tmp_path_factory.mktemp("dinov2")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_fd_dinov2_is_the_frechet_distance_of_the_class_tokens(dinov2: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    data = testbed.Data(pictures(4, 10), pictures(9, 10, seed=1))
    before = torch.get_rng_state()
    metric = REGISTRY.metric("fd_dinov2", weights=str(dinov2), side=42)
    assert metric.problems(data) == []
    samples = pictures(7, 10, seed=2) / 2
    found = metric.estimate(samples, data, stream(0, "test"))
    assert torch.equal(torch.get_rng_state(), before)
    network = transformers.Dinov2Model.from_pretrained(dinov2).eval()
    mean, deviation = (torch.tensor(one).view(1, 3, 1, 1) for one in images.IMAGENET)
    both = []
    for one in (samples, data.test):
        unit = interpolate((one + 1) / 2, (42, 42), mode="bicubic", antialias=True).clamp(0, 1)
        with torch.no_grad():
            hidden = network((unit - mean) / deviation).last_hidden_state
        both.append(hidden[:, 0].double())
    assert found.value == pytest.approx(frechet.squared_distance(*both), rel=1e-4)
    with pytest.raises(InputError, match=r"side = 40 must be a multiple .* 14 pixels"):
        REGISTRY.metric("fd_dinov2", weights=str(dinov2), side=40)(samples, data, stream(0, "test"))


def test_a_folder_of_something_else_is_refused(dinov2: Path, tmp_path: Path) -> None:
    from testbed.metrics.features import dinov2 as module

    with pytest.raises(InputError, match=r"has no config\.json\. It is a folder"):
        module.features(str(tmp_path), 28)
    (tmp_path / "config.json").write_text((dinov2 / "config.json").read_text())
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        module.features(str(tmp_path), 28)
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"has no weights for|cannot be loaded"):
        module.features(str(tmp_path), 28)


def test_without_transformers_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from testbed.metrics.features import dinov2 as module

    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(InputError, match="needs transformers, which is not installed"):
        module.features(str(tmp_path), 28)
