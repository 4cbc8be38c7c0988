"""Texts as a condition: tables of their tokens' states, the cache, prompts, and a study of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import studies
from helpers.command_line import run_here, trials_only
from helpers.encoders import clip

import testbed
from testbed.data import text_encoder
from testbed.data.captions import CAPTIONS, captions
from testbed.errors import InputError
from testbed.sampling.guidance_methods import ClassifierFreeGuidance, GuidanceAgainst
from testbed.testing.cases import awaken
from testbed.trial import build, texts
from testbed.trial.config import TrialConfig
from testbed.trial.texts import TextEncoder

pytest.importorskip("transformers", reason="transformers is not installed")

STUDY = """
[study]
name = "text"
[base]
dataset = { name = "captions", size = 4, n = 256, test = 64 }
network = { name = "mlp", width = 8, depth = 1 }
conditions = { caption = 0.2 }
text_encoder = { path = "ENCODER", tokens = 12 }
density = "lognormal"
weighting = "edm"
loss = "l2"
training = { steps = 20, batch = 8 }
evaluation = { levels = 2, draws = 8, samples = 8, steps = 2, metrics = [] }
seeds = 1
[grid]
parameterization = ["v"]
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "testbed" / "texts"


def data() -> testbed.Data:
    return captions(size=4, n=64, test=32)


def encoder(at: Path, **change: Any) -> TextEncoder:
    return TextEncoder(**{"path": str(at), "tokens": 12, **change})


# --- tables -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_table_has_the_states_of_each_text_and_padding_after_them(tiny: Path) -> None:
    found = texts.encoded(data(), encoder(tiny))
    table, states = found.tables["caption"], text_encoder.states(str(tiny), CAPTIONS)
    assert table.kind == "tokens"
    assert table.rows.shape == (15, 12, 16)
    assert table.mask is not None
    for row, mask, z in zip(table.rows, table.mask, states, strict=True):
        assert int(mask.sum()) == len(z)
        assert torch.equal(row[mask], z)
        assert not bool(row[~mask].any())
        assert bool(mask[: len(z)].all())
    assert found.texts["caption"] == CAPTIONS
    assert found.classes["caption"] == 15


def test_data_without_an_encoder_are_as_they_were() -> None:
    given = data()
    assert texts.encoded(given, None) is given
    assert texts.encoded(given, None, {"caption": ["two blobs"]}) is given


@pytest.mark.slow
def test_the_empty_text_is_a_row_where_it_stands_for_off(tiny: Path) -> None:
    settings = encoder(tiny, null="empty")
    found = texts.encoded(data(), settings)
    assert found.texts["caption"] == (*CAPTIONS, "")
    assert found.tables["caption"].off == 15
    assert texts.encoded(data(), encoder(tiny)).tables["caption"].off is None
    mask = found.tables["caption"].mask
    assert mask is not None
    assert int(mask[15].sum()) == 2


@pytest.mark.slow
def test_padding_may_have_states_like_tokens(tiny: Path, own_cache: Path) -> None:
    """All places are tokens then: another cache entry, no mask, and a row for each text and off."""
    settings = encoder(tiny, null="empty", padding="states")
    table = texts.encoded(data(), settings).tables["caption"]
    states = text_encoder.padded_states(str(tiny), [*CAPTIONS, ""], 12)
    assert table.mask is None
    assert table.off == 15
    assert torch.equal(table.rows, torch.stack(states))
    masked = texts.encoded(data(), encoder(tiny, null="empty")).tables["caption"]
    assert not torch.equal(masked.rows, table.rows)
    texts.encoded(data(), encoder(tiny, null="empty", padding="states", tokens=11))
    assert len(list(own_cache.glob("*.safetensors"))) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit", "unet"])
def test_a_token_for_none_is_learned_where_there_may_be_none_alone(tiny: Path, name: str) -> None:
    """Of complete tables the network has no such token, and each of their places is attended to."""
    if name == "unet":
        pytest.importorskip("diffusers", reason="diffusers is not installed")
    network = testbed.Registry().network(name)
    for padding, null, learned in (
        ("states", "empty", False), ("states", "off", True), ("masked", "empty", True),
    ):  # fmt: skip
        settings = encoder(tiny, padding=padding, null=null)
        found = texts.encoded(captions(size=4, n=8, test=4), settings)
        module = network(found.shape, 0, 0, tables=found.tables)
        assert ("tokens.none" in module.state_dict()) == learned
        if learned:
            continue
        awaken(module)
        x, c_noise, caption = found.test, torch.linspace(-1, 1, 4), torch.tensor([0, 3, 5, 7])
        before = module(x, c_noise, {"caption": caption})
        module.get_buffer("tokens.values.caption.rows")[:, -1] += 1.0
        assert not torch.allclose(module(x, c_noise, {"caption": caption}), before, atol=1e-4)


@pytest.mark.slow
def test_prompts_are_further_rows_and_move_no_other(tiny: Path) -> None:
    for null, first in (("off", 15), ("empty", 16)):
        few = texts.encoded(data(), encoder(tiny, null=null))
        prompts = {"caption": ["two red blobs", "two blobs", "two red blobs"]}
        more = texts.encoded(data(), encoder(tiny, null=null), prompts)
        rows = more.tables["caption"].rows
        assert torch.equal(rows[:first], few.tables["caption"].rows)
        assert texts.number(more, "caption", "two red blobs") == first == len(rows) - 1
        assert texts.number(more, "caption", "two blobs") == 1


@pytest.mark.slow
def test_the_cache_is_used_and_knows_files_texts_and_layer(
    tiny: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    states = text_encoder.states

    def counted(path: str, several: Any, layer: int = -1) -> Any:
        asked.append(len(several))
        return states(path, several, layer)

    monkeypatch.setattr(text_encoder, "states", counted)
    first = texts.encoded(data(), encoder(tiny))
    again = texts.encoded(data(), encoder(tiny, tokens=14))
    assert asked == [15]
    assert torch.equal(first.tables["caption"].rows, again.tables["caption"].rows[:, :12])
    texts.encoded(data(), encoder(tiny, layer=-2))
    texts.encoded(data(), encoder(tiny, null="empty"))
    assert asked == [15, 15, 16]
    assert len(list(own_cache.glob("*.safetensors"))) == 3
    assert not list(own_cache.glob("*.tmp"))
    for file in own_cache.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    made = texts.encoded(data(), encoder(tiny))
    assert asked == [15, 15, 16, 15]
    assert torch.equal(made.tables["caption"].rows, first.tables["caption"].rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tokens": 5},
            "text 'one blob, the red one left' has 9 tokens, and .*tokens = 5",
        ),
        ({"path": "nowhere"}, "text_encoder.path = 'nowhere': there is no such folder"),
        ({"digest": "0" * 64}, "the files are not those that the trial was trained with"),
    ],
)
def test_an_encoder_that_does_not_fit_is_told(
    tiny: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        texts.encoded(data(), encoder(tiny, **change))


def test_a_text_that_there_is_not_is_told() -> None:
    with pytest.raises(InputError, match=r"'tow blobs'\. Did you mean 'two blobs'"):
        texts.encoded(data(), None, {"caption": ["tow blobs"]})
    with pytest.raises(InputError, match=r"lable=two is no class.*'lable'"):
        texts.encoded(data(), None, {"lable": ["two"]})
    plain = testbed.Registry().dataset("mixture", n=9, test=9)()
    with pytest.raises(InputError, match="these data have no texts to encode"):
        texts.encoded(plain, TextEncoder(path="anywhere"))


# --- where a text is off ------------------------------------------------------------------------


@pytest.mark.slow
def test_the_empty_text_stands_for_off_and_the_weights_stay(tiny: Path) -> None:
    found = texts.encoded(data(), encoder(tiny, null="empty"))
    network = testbed.Registry().network("mlp", width=8, depth=1)
    plain, filled = (network(found.shape, 3, 0, tables=found.tables) for _ in range(2))
    texts.row_for_off(filled, {"caption": 15})
    assert plain.state_dict().keys() == filled.state_dict().keys()
    generator = torch.Generator().manual_seed(0)
    for p, q in zip(plain.parameters(), filled.parameters(), strict=True):
        p.data.normal_(generator=generator)
        q.data.copy_(p.data)
    x, c_noise = found.test[:4], torch.linspace(-1, 1, 4)
    empty, label = torch.full((4,), 15), torch.tensor([0, 1, 2, -1])
    wanted = plain(x, c_noise, {"caption": empty})
    assert torch.equal(filled(x, c_noise, None), wanted)
    assert torch.equal(filled(x, c_noise), wanted)
    assert torch.equal(filled(x, c_noise, {"caption": empty - 16}), wanted)
    assert not torch.equal(plain(x, c_noise, None), wanted)
    some = torch.tensor([3, -1, 4, -1])
    both = filled(x, c_noise, {"caption": some, "label": label})
    assert torch.equal(
        both, plain(x, c_noise, {"label": label, "caption": torch.where(some < 0, 15, some)})
    )


# --- a study's key ------------------------------------------------------------------------------


def planned(tmp_path: Path, tiny: Path, *words: str) -> Any:
    return studies.planned(STUDY.replace("ENCODER", str(tiny)), tmp_path, *words)


@pytest.mark.slow
def test_the_identity_has_the_digest_of_the_encoder_and_not_its_path(
    tmp_path: Path, tiny: Path
) -> None:
    other = tmp_path / "copy"
    other.mkdir()
    for file in tiny.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (one,), (two,) = (planned(tmp_path, at).trials for at in (tiny, other))
    assert one.config.text_encoder.path != two.config.text_encoder.path
    assert one.id == two.id
    assert one.config.text_encoder.digest == text_encoder.Folders.of(str(tiny)).digest()
    assert one.config.data_digest == captions(size=4, n=256, test=64).digest
    (longer,) = planned(tmp_path, tiny, "text_encoder.null=empty").trials
    assert longer.id != one.id
    assert TrialConfig.model_validate(one.config.record()).record() == one.config.record()


REFUSED = {
    "data without texts": (["dataset=mixture"], "these data have no texts to encode"),
    "no condition of texts": (
        ["conditions=none"],
        "text_encoder: none of the model's conditions has texts to encode: write conditions = "
        "{ caption = 0.1 }, or leave text_encoder out.",
    ),
    "an unknown key": (["text_encoder.layers=1"], "Did you mean 'layer'"),
    "an unknown null": (["text_encoder.null=nothing"], "text_encoder.null"),
    "a negative text that is none": (
        ['evaluation.guidance={name="classifier_free", negative="tow blobs"}'],
        "evaluation.guidance.negative = 'tow blobs': Unknown text 'tow blobs'. Did you mean "
        "'two blobs'?",
    ),
    "a negative text without texts": (
        [
            'evaluation.guidance={name="classifier_free", negative="two blobs"}',
            "dataset=mixture",
            "conditions={label=0.1}",
            "text_encoder=none",
        ],
        "negative = 'two blobs' is a text, and conditions has none of texts.",
    ),
    "a negative of another type": (
        ['evaluation.guidance={name="classifier_free", negative=0.5}'],
        "option negative = 0.5 must be a whole number or a text",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_does_not_fit_is_refused_before_training(why: str, tmp_path: Path, tiny: Path) -> None:
    words, reason = REFUSED[why]
    assert reason in studies.refusal(STUDY.replace("ENCODER", str(tiny)), tmp_path, *words)


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        (
            "capton=0.2",
            "Unknown condition 'capton'. Did you mean 'caption'? Known: caption, label.",
        ),
        ("label=0.2,text=0.2", "Unknown condition 'text'. Known: caption, label."),
    ],
)
def test_a_misspelt_condition_is_the_only_complaint(
    conditions: str, said: str, tmp_path: Path, tiny: Path
) -> None:
    """That the encoder has no texts follows from the misspelling."""
    name = conditions.split(",")[-1].partition("=")[0]
    words = f"conditions={{{conditions}}}"
    told = studies.refusal(STUDY.replace("ENCODER", str(tiny)), tmp_path, words)
    assert told.endswith(f": --set conditions.{name} = 0.2: {said}")
    assert "\n" not in told


@pytest.mark.slow
def test_texts_are_classes_without_an_encoder(tmp_path: Path, tiny: Path) -> None:
    negative = 'evaluation.guidance={name="classifier_free", negative="two blobs"}'
    (one,) = planned(tmp_path, tiny, "text_encoder=none", negative).trials
    assert one.config.text_encoder is None
    denoiser, _ = build.assemble(one.config, testbed.Registry(), build.data_of(
        one.config, testbed.Registry()))  # fmt: skip
    assert build.module_of(denoiser).get_parameter("conditions.caption.weight").shape == (15, 8)


def test_a_negative_text_is_the_condition_of_the_other_denoiser() -> None:
    way, given = ClassifierFreeGuidance(2.0, "two blobs"), data()
    assert way.negatives({"label": 0.1, "caption": 0.0}, given) == {"caption": 1}
    assert list(way.misfits({"caption": 0.0}, given)) == []
    assert len(list(way.misfits({"caption": 0.1, "label": 0.0}, given))) == 1
    exact = given.conditional
    assert exact is not None
    guided = way.against(way.negatives({"caption": 0.0}, given))
    assert isinstance(guided, GuidanceAgainst)
    caption, sigma = torch.full((8,), 5), torch.ones(8).double()
    x = given.test[:8].double()
    D = guided.denoiser(exact.denoise, None, {"caption": caption})(x, sigma)
    D_n, D_y = (exact.denoise(x, sigma, {"caption": torch.full((8,), k)}) for k in (1, 5))
    assert torch.allclose(D, D_n + 2 * (D_y - D_n), rtol=1e-12, atol=1e-12)
    with pytest.raises(InputError, match="negative is a text: its class is that of the data"):
        way.denoiser(exact.denoise, None, {"caption": caption})


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of a model of texts, guided away from one of them, run to its end."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "t.toml").write_text(STUDY.replace("ENCODER", str(clip(folder / "encoder"))))
    guided = 'evaluation.guidance={name="classifier_free", scale=2.0, negative="three blobs"}'
    words = ("study", "t.toml", "--no-mlflow", "--jobs", 0, "--device", "cpu")
    words += ("--set", guided, "--set", "evaluation.exact_ends=32")
    metrics = 'evaluation.metrics=["conditional_energy"]'
    words += ("--set", metrics, "--set", "evaluation.samples=48")
    with trials_only():
        done = run_here(folder, *words)
    assert done.code == 0, done.err
    return folder


def trial(folder: Path) -> Path:
    (file,) = folder.glob("runs/text/trials/*/trial.json")
    return file.parent


def drawn(folder: Path, *words: object) -> np.ndarray:
    done = run_here(folder, "sample", trial(folder), "-n", 5, "--out", "samples.npy", *words)
    assert done.code == 0, done.err
    found: np.ndarray = np.load(folder / "samples.npy")
    return found


@pytest.mark.slow
def test_a_study_measures_a_model_of_texts(ran: Path) -> None:
    result = json.loads((trial(ran) / "result.json").read_text())
    excesses = {"excess_nats", "excess_dropped_nats", "excess_guided_nats"}
    assert excesses | {"guided_error", "guided_ode_error"} <= set(result["metrics"])
    (floor,) = json.loads((ran / "runs/text/data/data.json").read_text())["floors"].values()
    # Hardly trained: far from p(x|c), which real samples with the same captions are not.
    assert result["metrics"]["conditional_energy"] > floor["mean"] + 5 * floor["sd"]
    assert 0 < result["errors"]["guided_ode_error"]["error"] < result["metrics"]["guided_ode_error"]


@pytest.mark.slow
def test_samples_are_drawn_of_texts(ran: Path) -> None:
    by_text = drawn(ran, "--condition", "caption=two blobs")
    assert np.array_equal(by_text, drawn(ran, "--condition", "caption=1"))
    new = drawn(ran, "--condition", "caption=two red blobs")
    assert not np.array_equal(by_text, new)
    away = drawn(ran, "--condition", "caption=two blobs", "--negative", "caption=one red blob")
    assert not np.array_equal(by_text, away)
    same = drawn(ran, "--condition", "caption=two blobs", "--negative", "caption=three blobs")
    assert np.array_equal(by_text, same)
    off = drawn(ran, "--condition", "caption=two blobs", "--negative", "caption=-1")
    assert not np.array_equal(by_text, off)


@pytest.mark.slow
def test_a_text_that_the_data_do_not_have_is_told(ran: Path) -> None:
    words = ("sample", trial(ran), "-n", 1, "--out", "samples.npy", "--condition")
    misspelt = run_here(ran, *words, "caption=two blosb", "--negative", "caption=cats").out
    said = "is none of the 15 texts of the data: the network was not trained on it."
    assert f"caption: 'two blosb' {said} Did you mean 'two blobs'?" in misspelt
    assert f"caption: 'cats' {said}" in misspelt
    assert "is none of" not in run_here(ran, *words, "caption=two blobs").out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--condition", "lable=two"], "lable=two is no class"),
        (["--condition", "caption=15"], "expected 0 to 14, or -1 to switch it off"),
        (["--negative", "caption"], "--negative caption: expected NAME=CLASS"),
        (["--negative", "label=1"], "--negative label=1: Unknown condition 'label'"),
        (["--condition", "caption=" + "red " * 40], "has 42 tokens"),
    ],
)
def test_what_cannot_be_sampled_is_told(ran: Path, words: list[str], message: str) -> None:
    done = run_here(ran, "sample", trial(ran), "--out", "samples.npy", *words)
    assert done.code == 2
    assert message in " ".join(done.err.split())


@pytest.mark.slow
def test_a_model_of_another_encoder_is_refused(ran: Path) -> None:
    config = ran / "encoder" / "config.json"
    kept = config.read_text()
    try:
        config.write_text(kept + "\n")
        done = run_here(ran, "sample", trial(ran), "--out", "samples.npy")
    finally:
        config.write_text(kept)
    assert done.code == 2
    assert "the files are not those that the trial was trained with" in " ".join(done.err.split())
