"""The Fréchet and the kernel distance of features, and the metrics that are made of them."""

import math
import statistics
from pathlib import Path

import pytest
import torch
from helpers.command_line import run_here
from laws.feature_distances import normal
from torch import Tensor

import testbed
from testbed.components.metric import Embedding, MetricValue
from testbed.errors import InputError
from testbed.metrics import frechet, kernels
from testbed.metrics.features import classifier, weights
from testbed.random import stream
from testbed.registry import default_registry

REGISTRY = default_registry()
ON_DISK = ("fid", "fd_dinov2", "lpips")


def labelled(shape: tuple[int, ...] = (3,), n: int = 80) -> testbed.Data:
    """Two classes that lie apart along the first dimension, in both splits."""
    d = math.prod(shape)
    labels = torch.arange(n) % 2
    splits = [normal(n, d, seed=seed).float() for seed in (1, 2)]
    for split in splits:
        split[:, 0] += 3 * labels
    return testbed.Data(*(one.view(n, *shape) for one in splits), labels, labels)


# --- the distances ----------------------------------------------------------------------------


@pytest.mark.slow
def test_an_error_of_the_frechet_distance_is_that_of_its_spread() -> None:
    """The grouped jackknife's square is on average not below the variance (Efron and Stein)."""
    found = [
        frechet.estimate(normal(60, 2, seed=2 * s, mean=1.0), normal(60, 2, seed=2 * s + 1),
                         stream(s, "test"))
        for s in range(150)
    ]  # fmt: skip
    values = [one.value for one in found]
    ratio = statistics.fmean(one.error**2 for one in found) / statistics.variance(values)
    # A variance of 150 is known to sqrt(2/150) = 12 % for about normal values, the mean of squares
    # of errors, each known to 2 * 16 %, to 3 %: five of them below, and the bias above.
    assert 0.4 < ratio < 2.0


def test_the_frechet_distance_is_biased_upwards_and_less_so_for_more_rows() -> None:
    means = [
        statistics.fmean(
            frechet.squared_distance(normal(n, 5, seed=2 * s), normal(n, 5, seed=2 * s + 1))
            for s in range(40)
        )
        for n in (20, 80)
    ]
    assert means[0] > 3 * means[1] > 0


def test_a_rotation_and_a_shift_change_no_frechet_distance() -> None:
    x, y = normal(30, 6, seed=1, scale=2.0), normal(40, 6, seed=2)
    Q, _ = torch.linalg.qr(normal(6, 6, seed=3))
    moved = frechet.squared_distance(x @ Q + 5, y @ Q + 5)
    assert moved == pytest.approx(frechet.squared_distance(x, y), rel=1e-12)
    padded = [torch.cat([z, torch.zeros(len(z), 50).double()], 1) for z in (x, y)]
    same = frechet.squared_distance(*padded)
    assert same == pytest.approx(frechet.squared_distance(x, y), rel=1e-12)


def test_few_rows_and_rows_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="at least 2 rows, got 1 and 4"):
        frechet.squared_distance(normal(1, 3), normal(4, 3))
    found = frechet.estimate(normal(2, 3), normal(4, 3, seed=1), stream(0, "test"))
    assert math.isfinite(found.value)
    assert math.isnan(found.error)
    gone = normal(5, 3)
    gone[2, 1] = math.nan
    assert all(map(math.isnan, frechet.estimate(gone, normal(4, 3), stream(0, "test"))))
    found = kernels.of_rows(gone, normal(4, 3), kernels.cubic, stream(0, "test"))
    assert math.isnan(found.value)


# --- as metrics -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["feature_frechet", "feature_kernel"])
@pytest.mark.parametrize("features", ["classifier", "random"])
@pytest.mark.parametrize("shape", [(3,), (1, 6, 6), (6, 7)])
def test_a_feature_metric_is_its_distance_in_the_features(
    name: str,
    features: str,
    shape: tuple[int, ...],
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(classifier, "SETTINGS", classifier.Settings(steps=20))
    data = labelled(shape)
    metric = REGISTRY.metric(name, features=features, n=30)
    samples = data.train[:40] + 0.5
    found = metric.estimate(samples, data, stream(0, "test"))
    space = metric.embedding(data)
    assert space is not None
    held_out = data.test[torch.randperm(80, generator=stream(0, "test"))[:30]]
    x, y = space.features(samples), space.features(held_out)
    assert x.dtype == torch.float64
    assert x.shape == (40, 64)
    k = kernels.cubic
    truth = {
        "feature_frechet": lambda: frechet.squared_distance(x, y),
        "feature_kernel": lambda: float(
            (k(x, x).sum() - k(x, x).trace()) / (40 * 39)
            + (k(y, y).sum() - k(y, y).trace()) / (30 * 29)
            - 2 * k(x, y).mean()
        ),
    }[name]()
    size = float(k(torch.cat([x, y]), torch.cat([x, y])).abs().max())
    assert found.value == pytest.approx(truth, rel=1e-9, abs=1e-13 * size)
    assert found.error > 0
    assert math.isnan(found.p) == (name == "feature_frechet")


def test_data_without_labels_are_refused_with_the_way_out(tmp_path: Path) -> None:
    data = REGISTRY.dataset("gaussian")()
    for name in ("feature_frechet", "feature_kernel"):
        (problem,) = REGISTRY.metric(name).problems(data)
        assert problem.startswith(f"metric '{name}': its features are those of a classifier")
        assert "the data have no labels" in problem
        assert 'features = "random"' in problem
        assert REGISTRY.metric(name, features="random").problems(data) == []
        with pytest.raises(InputError, match="have no labels"):
            REGISTRY.metric(name)(data.train[:9], data, stream(0, "test"))


@pytest.mark.parametrize("name", ON_DISK)
def test_without_weights_it_says_in_one_sentence_which_and_where_they_come_from(name: str) -> None:
    data = REGISTRY.dataset("digits")()
    problem = REGISTRY.metric(name).problems(data)[0]
    source = {"fid": "pytorch-fid", "fd_dinov2": "dinov2-large", "lpips": "PerceptualSimilarity"}
    assert problem.startswith(f"metric '{name}': it needs weights = \"PATH\". It is ")
    assert source[name] in problem
    assert "testbed downloads nothing" in problem
    with pytest.raises(InputError, match="needs weights"):
        REGISTRY.metric(name)(data.train[:4], data, stream(0, "test"))
    with pytest.raises(InputError, match=r"no such file\. It is "):
        REGISTRY.metric(name, weights="/nowhere/x.safetensors")
    with pytest.raises(InputError, match="nothing is unpickled here"):
        REGISTRY.metric(name, weights="/nowhere/x.pth")


@pytest.mark.parametrize("name", ON_DISK)
def test_what_are_no_images_of_the_stated_range_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"w")
    options = {"weights": str(tmp_path / "w.safetensors")}
    vectors = labelled((3,))
    assert "has the shape (3,)" in REGISTRY.metric(name, **options).problems(vectors)[0]
    images = labelled((3, 32, 32))
    (problem,) = REGISTRY.metric(name, **options).problems(images)
    assert "leave -1 to 1: write low and high" in problem
    assert REGISTRY.metric(name, **options, low=-9.0, high=9.0).problems(images) == []
    (problem,) = REGISTRY.metric(name, **options, low=9.0, high=-9.0).problems(images)
    assert "low = 9 must be below high = -9" in problem


def test_lpips_says_which_images_are_too_small(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"w")
    data = REGISTRY.dataset("digits")()
    for backbone, least in (("vgg", 16), ("alex", 31)):
        metric = REGISTRY.metric("lpips", weights=str(tmp_path / "w.safetensors"),
                                 backbone=backbone)  # fmt: skip
        assert (
            f"8 x 8 pixels are too small for its network, which needs {least}"
            in (metric.problems(data)[0])
        )


def test_a_loss_lpips_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match=r"elementwise.*metric lpips"):
        REGISTRY.loss("lpips")


def test_the_digest_of_weights_is_an_option_that_is_filled_in_and_compared(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"one")
    metric = REGISTRY.metric("fid", weights=str(file))
    assert metric.options["digest"] == weights.digest(file)
    again = REGISTRY.metric("fid", **metric.options)
    assert again.options == metric.options
    file.write_bytes(b"other")
    with pytest.raises(InputError, match="the study was made with"):
        REGISTRY.metric("fid", **metric.options)
    # Of a folder the configuration counts, too.
    (tmp_path / "config.json").write_text("{}")
    first = weights.digest(tmp_path)
    (tmp_path / "config.json").write_text("{ }")
    assert weights.digest(tmp_path) != first


# --- the component ----------------------------------------------------------------------------


def measure(samples: Tensor, data: testbed.Data, generator: torch.Generator) -> float:
    return 0.0


def test_a_metric_may_have_a_space_and_reasons_not_to_measure() -> None:
    data = labelled()

    def embed(data: testbed.Data, scale: float = 2.0) -> Embedding:
        return Embedding(lambda x: scale * x.double(), "twice")

    def misfits(data: testbed.Data, scale: float = 2.0) -> list[str]:
        return [] if scale == 2.0 else [f"scale is {scale}"]

    metric = testbed.Metric("own", measure, embed=embed, misfits=misfits)
    assert metric.embedding(data).features(torch.ones(1, 3)).tolist() == [[2.0] * 3]
    assert metric.problems(data) == []
    assert metric.bound({"scale": 3.0}).problems(data) == ["metric 'own': scale is 3.0"]
    plain = testbed.Metric("plain", measure)
    assert plain.embedding(data) is None
    assert plain.problems(data) == []
    assert plain.estimate(data.train, data, stream(0, "test"))[:1] == MetricValue(0.0)[:1]


@pytest.mark.parametrize(
    ("field", "function", "message"),
    [
        ("embed", lambda data: None, "embed must return an Embedding, got None"),
        ("misfits", lambda data: "no", "misfits must return sentences, got 'no'"),
        ("misfits", lambda data: 1, "misfits must return sentences, got 1"),
        ("embed", lambda data: 1 / 0, "embed raised ZeroDivisionError"),
    ],
)
def test_wrong_functions_of_a_metric_are_told(field: str, function: object, message: str) -> None:
    metric = testbed.Metric("own", measure, **{field: function})
    with pytest.raises(InputError, match=message):
        metric.embedding(labelled()) if field == "embed" else metric.problems(labelled())


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ('["fid"]', "needs weights"),
        ('["feature_frechett"]', "Did you mean 'feature_frechet'?"),
        ('[{ name = "lpips", backbone = "vgq" }]', "Did you mean 'vgg'?"),
    ],
)
def test_a_study_that_cannot_be_measured_ends_before_any_training(
    metrics: str, message: str, tiny: Path
) -> None:
    done = run_here(tiny, "study", "tiny.toml", "--no-mlflow", "--jobs", "0", "--set",
                    f"evaluation.metrics={metrics}")  # fmt: skip
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert not (tiny / "runs").exists()


def test_a_study_of_data_without_labels_is_told_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "plain.toml").write_text(
        '[study]\nname = "plain"\n[base]\ndataset = "gaussian"\nparameterization = "v"\n'
        'evaluation = { metrics = ["feature_frechet"] }\n'
    )
    done = run_here(tmp_path, "study", "plain.toml", "--no-mlflow", "--jobs", "0")
    assert done.code == 2
    said = " ".join(done.err.split())
    assert "metric 'feature_frechet': its features are those of a classifier" in said
    assert 'write features = "random"' in said
