"""The classifier whose features the metrics take: the same bits each time, trained once, kept."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import testbed
from testbed import cache
from testbed.errors import InputError
from testbed.metrics.features import classifier
from testbed.metrics.features.classifier import Settings
from testbed.registry import default_registry

FEW = Settings(steps=20, batch=16, width=4, features=5)


@pytest.fixture(autouse=True)
def fresh(own_cache: Path) -> None:
    """Nothing that was trained before."""
    classifier.trained.cache_clear()
    classifier._embedding.cache_clear()


def data(shape: tuple[int, ...] = (3,), classes: int = 3, seed: int = 0) -> testbed.Data:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, *shape, generator=generator)
    y = torch.arange(30) % classes
    return testbed.Data(x[:30], x[30:], y, y)


def weights_of(found: classifier.Trained) -> list[torch.Tensor]:
    return list(found.network.state_dict().values())


@pytest.mark.parametrize("shape", [(3,), (1, 4, 4), (3, 9, 6), (20, 17), (2, 3, 4, 5)])
def test_the_same_data_give_the_same_bits_whatever_the_threads_and_the_global_state(
    shape: tuple[int, ...], own_cache: Path
) -> None:
    first = classifier.trained(data(shape), FEW)
    for file in own_cache.iterdir():
        file.unlink()
    torch.manual_seed(7)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        again = classifier.trained(data(shape), FEW)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, weights_of(first), weights_of(again)))
    assert (again.digest, again.accuracy) == (first.digest, first.accuracy)


@pytest.mark.slow
def test_it_learns_the_digits_and_its_features_tell_the_classes() -> None:
    digits = default_registry().dataset("digits")()
    found = classifier.trained(digits, Settings(steps=150))
    # 150 batches of 128 are 13 epochs. A linear classifier is right on 95 %.
    assert found.accuracy > 0.95
    logits = found.network(digits.test / digits.sigma_data)
    right = (logits.argmax(1) == digits.test_labels).double().mean()
    assert found.accuracy == pytest.approx(float(right))


def test_it_is_trained_once_and_kept_under_what_it_follows_from(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = classifier.trained(data(), FEW)
    (file,) = own_cache.glob("*.safetensors")
    with safe_open(file, "pt") as content:
        facts = json.loads(content.metadata()["facts"])
        assert facts == {"digest": first.digest, "accuracy": first.accuracy}
        assert set(content.keys()) == set(first.network.state_dict())
    monkeypatch.setattr(classifier, "fit", lambda *words: pytest.fail("it is trained again"))
    classifier.trained.cache_clear()
    again = classifier.trained(data(), FEW)
    assert all(map(torch.equal, weights_of(first), weights_of(again)))
    # Others are others.
    for other, settings in ((data(seed=1), FEW), (data(), Settings(21, 16, 4))):
        with pytest.raises(pytest.fail.Exception, match="trained again"):
            classifier.trained(other, settings)
    monkeypatch.setattr(classifier, "_sources", lambda: "changed")
    classifier.trained.cache_clear()
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        classifier.trained(data(), FEW)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:40],
        lambda content: b"",
        lambda content: content[:-3] + bytes(b ^ 1 for b in content[-3:]),
    ],
    ids=["cut", "empty", "bits"],
)
def test_a_damaged_file_is_made_again(damage: object, own_cache: Path) -> None:
    first = classifier.trained(data(), FEW)
    (file,) = own_cache.glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))  # type: ignore[operator]
    classifier.trained.cache_clear()
    assert classifier.trained(data(), FEW).digest == first.digest
    assert file.read_bytes() == whole


def test_without_a_cache_that_can_be_written_it_is_trained_each_time(own_cache: Path) -> None:
    own_cache.parent.write_text("a file where the folder would be")
    first = classifier.trained(data(), FEW)
    classifier.trained.cache_clear()
    assert classifier.trained(data(), FEW).digest == first.digest


def test_what_its_features_are_is_said_with_accuracy_and_digest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(classifier, "SETTINGS", FEW)
    own = data()
    space, found = classifier.embedding(own), classifier.trained(own, FEW)
    assert space.about == (
        f"The features are those of a classifier of the training split, right on "
        f"{found.accuracy:.1%} of the held-out data ({found.digest[:12]})."
    )
    expected = found.network.features(own.test / own.sigma_data).double()
    assert torch.equal(space.features(own.test), expected)
    random = classifier.embedding(own, "random")
    assert "an untrained network" in random.about
    assert not torch.equal(random.features(own.test), expected)


def test_samples_that_are_not_finite_have_no_features_and_leave_the_others_alone() -> None:
    own = data((1, 6, 6))
    space = classifier.embedding(own, "random")
    samples = own.test[:5].clone()
    samples[1, 0, 2, 3], samples[3, 0, 0, 0] = math.inf, math.nan
    found = space.features(samples)
    assert found.isnan().all(1).tolist() == [False, True, False, True, False]
    assert torch.equal(found[[0, 2, 4]], space.features(own.test[:5])[[0, 2, 4]])


@pytest.mark.parametrize(("classes", "words"), [(0, "no labels"), (1, "one class only")])
def test_data_without_classes_are_refused(classes: int, words: str) -> None:
    own = data()
    if classes:
        zeros = torch.zeros(30, dtype=torch.int64)
        own = testbed.Data(own.train, own.test, zeros, zeros)
    else:
        own = testbed.Data(own.train, own.test)
    with pytest.raises(InputError, match=words):
        classifier.embedding(own)
    assert classifier.embedding(own, "random").features(own.test).shape == (30, 64)


# --- the cache --------------------------------------------------------------------------------


def test_a_file_of_the_cache_is_made_once_and_again_where_it_is_damaged(own_cache: Path) -> None:
    made = []

    def make() -> bytes:
        made.append(1)
        return b"whole"

    for _ in range(2):
        assert cache.kept("a", make, lambda content: content == b"whole") == b"whole"
    assert len(made) == 1
    (own_cache / "a").write_bytes(b"who")
    assert cache.kept("a", make, lambda content: content == b"whole") == b"whole"
    assert len(made) == 2
    assert (own_cache / "a").read_bytes() == b"whole"
    assert sorted(file.name for file in own_cache.iterdir()) == ["a", "a.lock"]


def test_what_cannot_be_made_leaves_nothing_and_is_told(own_cache: Path) -> None:
    def make() -> bytes:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        cache.kept("a", make, bool)
    assert [file.name for file in own_cache.iterdir()] == ["a.lock"]
