"""How often looking at results while seeds are added leads to a wrong claim, and what it costs.

    python benchmarks/looks.py measure runs/STUDY    the correlation of log ratios between seeds
    python benchmarks/looks.py simulate [--studies 20000]
    python benchmarks/looks.py trained runs/ALIKE    A/A studies made of trials of one setting
    python benchmarks/looks.py seeds                 seeds saved or lost against a fixed number

`simulate` draws A/A studies, log ratios of m variants to a baseline that have mean zero: of one
variant; of eight with the correlation 1/2 that a shared baseline makes of independent variants;
and with the correlation in results/looks.json, if `measure` has written it. It looks after each
seed from the third to the thirtieth and counts the studies in which any look claims anything. As
all hypotheses are true, Holm's method claims something where its first step does: the smallest p
is at most alpha/m.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from testbed.metrics.comparison import compare
from testbed.metrics.looks import Look
from testbed.metrics.multiple_comparisons import correct
from testbed.metrics.paired_tests import ALPHA, MIN_SEEDS
from testbed.metrics.sequential import critical_t
from testbed.report import reading
from testbed.report.comparisons import baseline_of
from testbed.report.equal_objectives import equal_to

Array = NDArray[np.float64]
MEASURED = Path(__file__).parent / "results" / "looks.json"
MOST = 30
SEEDS = np.arange(MIN_SEEDS, MOST + 1)
"""Numbers of seeds after which there is a look."""
BLOCK = 2000
"""Studies simulated at a time."""
Z = np.linspace(-9, 9, 20_001)
SHAPES = {
    "Gaussian": Z,
    "t3": stats.t.isf(stats.norm.sf(Z), 3),
    "skewed (skewness 1)": stats.gamma.isf(stats.norm.sf(Z), 4.0) - 4.0,
    "skewed (skewness 2)": stats.gamma.isf(stats.norm.sf(Z), 1.0) - 1.0,
}
"""What becomes of a standard Gaussian number at each of Z, by the shape of log ratios."""


def measure(folder: Path) -> None:
    """Writes the correlation over seeds between the log ratios of a study to their baselines."""
    read = reading.read(folder)
    columns, names = [], []
    for case in read.cases:
        for arm in read.arms(case):
            base = baseline_of(read, case, arm)
            for variant in read.variants(case, arm):
                if base in (variant, *equal_to(read, case, arm, variant)):
                    continue
                a, b = (read.values(case, arm, v, read.primary(case)) for v in (variant, base))
                columns.append(np.log(a) - np.log(b))
                names.append(" ".join(filter(None, (case, arm, variant))))
    r = np.stack(columns, axis=1)
    correlation, skewness = np.corrcoef(r.T), stats.skew(r, bias=False)
    off = correlation[~np.eye(len(names), dtype=bool)]
    record = {
        "names": names,
        "seeds": len(r),
        "correlation": correlation.round(3).tolist(),
        "skewness": skewness.round(2).tolist(),
    }
    MEASURED.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{len(names)} log ratios over {len(r)} seeds; correlation {off.min():.2f} to")
    print(f"{off.max():.2f}, mean {off.mean():.2f}; skewness {skewness.round(2).tolist()}")


def draws(shape: str, correlation: Array, studies: int, rng: np.random.Generator) -> Array:
    """Log ratios (studies, MOST, m) of mean zero: of the shape, correlated by a Gaussian copula."""
    L = np.linalg.cholesky(correlation)
    z = rng.standard_normal((studies, MOST, len(L))) @ L.T
    return z if shape == "Gaussian" else np.interp(z, Z, SHAPES[shape])


def t_statistics(r: Array) -> Array:
    """|t| (..., looks, m) after three seeds, four, and so on to all of r (..., seeds, m)."""
    n = np.arange(MIN_SEEDS, r.shape[-2] + 1)[:, None]
    S, V = (np.cumsum(y, axis=-2)[..., MIN_SEEDS - 1 :, :] for y in (r, r**2))
    return np.asarray(np.abs(S) / np.sqrt((n * V - S**2) / (n - 1)))


def rules(m: int) -> dict[str, Array]:
    """|t| from which on each look claims something of m comparisons, by the name of the rule."""
    k = np.arange(1, len(SEEDS) + 1)
    spent = stats.t.isf(ALPHA / (k * (k + 1)) / m / 2, SEEDS - 1)
    first = stats.t.isf(ALPHA / m / 2, SEEDS[:1] - 1)
    return {
        "sequential": np.array([critical_t(int(n), ALPHA / m) for n in SEEDS]),
        "alpha/(k(k+1))": spent,
        "the same, first look at alpha": np.concatenate([first, spent[1:]]),
        "t test at every look": stats.t.isf(ALPHA / m / 2, SEEDS - 1),
    }


def simulate(studies: int) -> None:
    """Prints the rate of A/A studies with any claim, and its 95 % upper bound."""
    families = {"1": np.eye(1), "8, correlation 1/2": (np.eye(8) + np.ones((8, 8))) / 2}
    if MEASURED.is_file():
        found = np.array(json.loads(MEASURED.read_text())["correlation"])
        families[f"{len(found)}, correlation as measured"] = found
    print("| log ratios | comparisons | rule | rate | 95 % upper bound |\n|---|---|---|---|---|")
    for shape in SHAPES:
        for family, correlation in families.items():
            m = len(correlation)
            rng, wrong = np.random.default_rng(0), dict.fromkeys(rules(m), 0)
            for _ in range(studies // BLOCK):
                t = t_statistics(draws(shape, correlation, BLOCK, rng))
                for name, critical in rules(m).items():
                    wrong[name] += int((t >= critical[:, None]).any((-1, -2)).sum())
            for name, count in wrong.items():
                n = studies // BLOCK * BLOCK
                bound = stats.beta.isf(0.05, count + 1, n - count)
                print(
                    f"| {shape} | {family} | {name} | {count / n:.2%} | {bound:.2%} |", flush=True
                )


def trained(folder: Path, seeds: int = 6) -> None:
    """Prints how many A/A studies, made of a study's trials of one setting, claim anything.

    A study has two arms of `seeds` trials; no trial is in two of them. It is looked at after each
    seed from the third on.
    """
    read = reading.read(folder)
    (case,), (arm,) = read.cases, read.arms(read.cases[0])
    (variant,) = read.variants(case, arm)
    y = read.values(case, arm, variant, read.primary(case)).to_numpy()
    studies = len(y) // (2 * seeds)
    arms = y[: studies * 2 * seeds].reshape(studies, 2, seeds)
    looks = range(MIN_SEEDS, seeds + 1)
    counts = {"sequential": 0, "alpha/(k(k+1))": 0, "one t test at the end": 0}
    for a, b in arms:
        for name in counts:
            found = []
            for k, n in enumerate(looks, 1):
                look = Look("sequential" if name == "sequential" else "fixed", k, name[0] == "a")
                if name[0] != "o" or n == seeds:
                    found += correct([compare(a[:n], b[:n], test=look.test)])
            counts[name] += any(c.verdict in ("better", "worse") for c in found)
    print(f"{studies} A/A studies of 2 x {seeds} trainings, looks after 3 to {seeds} seeds:")
    for name, count in counts.items():
        bound = stats.beta.isf(0.05, count + 1, studies - count)
        print(f"  {name}: {count} claim something; 95 % upper bound of the rate {bound:.1%}")


def seeds_needed(studies: int = 10_000, most: int = 200, power: float = 0.9) -> None:
    """Prints the seeds of a sequential study and of one t test, both of the same power.

    The sequential one ends when it decides, or at the smallest number of seeds by which it has
    decided with that power.
    """
    z = np.random.default_rng(1).standard_normal((studies, most, 1))
    n = np.arange(MIN_SEEDS, most + 1)
    head = "effect in sd | comparisons | one t test | sequential: at most | mean | saved"
    print(f"| {head} |\n|---|---|---|---|---|---|")
    for m in (1, 8):
        critical = np.array([critical_t(int(k), ALPHA / m) for k in n])
        for effect in (0.5, 0.75, 1.0, 1.5, 2.0, 3.0):
            hit = (t_statistics(z + effect) >= critical[:, None])[..., 0]
            first = np.where(hit.any(1), n[hit.argmax(1)], most + 1)
            limit = int(np.ceil(np.quantile(first, power)))
            assert limit <= most
            mean, fixed = np.minimum(first, limit).mean(), _fixed(effect, power, ALPHA / m)
            row = f"{effect:g} | {m} | {fixed} | {limit} | {mean:.1f} | {1 - mean / fixed:+.0%}"
            print(f"| {row} |")


def _fixed(effect: float, power: float, alpha: float) -> int:
    """The fewest seeds with which one t test of level alpha has this power."""
    n = np.arange(MIN_SEEDS, 1000)
    reached = stats.nct.sf(stats.t.isf(alpha / 2, n - 1), n - 1, effect * np.sqrt(n))
    return int(n[np.argmax(reached >= power)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("measure", "trained"):
        commands.add_parser(name).add_argument("folder", type=Path)
    commands.add_parser("simulate").add_argument("--studies", type=int, default=20_000)
    commands.add_parser("seeds")
    asked = parser.parse_args()
    if asked.command == "measure":
        measure(asked.folder)
    elif asked.command == "trained":
        trained(asked.folder)
    elif asked.command == "simulate":
        simulate(asked.studies)
    else:
        seeds_needed()


if __name__ == "__main__":
    main()
