"""`python benchmarks/captions.py FOLDER [TEXT...]`: do the samples of trials fit their captions?

The study is of the data set `captions`. Each sample is counted to the scene that is nearest to it.
For every parameterization, at w = 1 and w = 2 of classifier-free guidance: the share of samples
whose scene fits the caption, the total variation between the scenes' frequencies and
p(scene | caption), and the root mean square distance per dimension to the nearest scene, which is
the data's `width` for real pictures. These are means over the 15 captions of the data, with 95 %
intervals over seeds. The total variation of as many exact samples is printed first: it is not 0.
Of each TEXT: the scenes of its samples, of all seeds together.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import testbed
from testbed.data.captions import CAPTIONS, SCENES, caption_probabilities, prior, rendered
from testbed.metrics.intervals import Interval, mean_interval
from testbed.random import stream
from testbed.sampling.pipeline import Pipeline
from testbed.trial.folders import TrialFolder

SAMPLES = 100
SCALES = (1.0, 2.0)
SHOWN = 4
MEASURED = ("fits", "total variation", "distance")


def named(scene: int) -> str:
    """A scene in three letters: R for the red blob, b for a blue one."""
    return "".join(
        "R" if place == SCENES[scene].red else "b" if place in SCENES[scene].places else "."
        for place in range(3)
    )


def shown(of: Interval) -> str:
    return f"{of.value:.3f} [{of.low:.3f}, {of.high:.3f}]"


def nearest(samples: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest scene of each sample, and its root mean square distance per dimension."""
    scenes = rendered(samples.shape[-1])
    distance, scene = torch.cdist(samples.double().flatten(1), scenes.flatten(1)).min(1)
    return scene, distance / scenes[0].numel() ** 0.5


def drawn(pipeline: Pipeline, text: str, scale: float) -> Tensor:
    """Samples of one text from noise that is the same for every text, trial and scale."""
    samples: Tensor = pipeline(
        SAMPLES, {"caption": text}, scale=scale, generator=stream(0, "captions")
    )
    return samples


def scenes_of_captions() -> Tensor:
    """p(scene | caption), (15, 12)."""
    both = caption_probabilities() * prior()[:, None]
    return (both / both.sum(0)).T


def apart(p: Tensor, scene: Tensor) -> float:
    """The total variation between p and the frequencies of scenes."""
    return float((p - torch.bincount(scene, minlength=len(p)) / len(scene)).abs().sum() / 2)


def fit(pipeline: Pipeline, scale: float) -> tuple[float, float, float]:
    """The three numbers of a trial, means over the captions of the data."""
    rows = []
    for text, p in zip(CAPTIONS, scenes_of_captions(), strict=True):
        scene, distance = nearest(drawn(pipeline, text, scale))
        fits = float((p[scene] > 0).double().mean())
        rows.append([fits, apart(p, scene), float(distance.square().mean())])
    means = torch.tensor(rows).double().mean(0)
    return float(means[0]), float(means[1]), float(means[2].sqrt())


def main(folder: Path, texts: Sequence[str]) -> None:
    """Prints a line for each parameterization and scale, and one for each text."""
    pipelines: dict[str, list[Pipeline]] = {}
    for trial in sorted((folder / "trials").iterdir()):
        config = TrialFolder.at(trial).json("trial.json")["config"]
        made = testbed.pipeline(trial, prompts={"caption": texts} if texts else None)
        pipelines.setdefault(config["parameterization"]["name"], []).append(made)
    exact = [
        apart(p, torch.multinomial(p, SAMPLES, replacement=True, generator=stream(0, "exact")))
        for p in scenes_of_captions()
    ]
    print(f"as many exact samples: total variation {sum(exact) / len(exact):.3f}")
    for name, several in pipelines.items():
        for scale in SCALES:
            columns = zip(*[fit(one, scale) for one in several], strict=True)
            said = ", ".join(
                f"{what} {shown(mean_interval(column))}"
                for what, column in zip(MEASURED, columns, strict=True)
            )
            print(f"{name}, w = {scale:g}: {said}")
            for text in texts:
                found = [nearest(drawn(one, text, scale)) for one in several]
                scenes = Counter(int(k) for scene, _ in found for k in scene)
                of = scenes.total()
                most = [f"{named(k)} {n / of:.0%}" for k, n in scenes.most_common(SHOWN)]
                distance = float(torch.cat([d for _, d in found]).square().mean().sqrt())
                print(f"  {text!r}: {', '.join(most)}; distance {distance:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
