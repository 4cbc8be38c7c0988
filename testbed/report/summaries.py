"""The descriptive tables of a report: what was run, what was checked, what went wrong."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from testbed import settings
from testbed.report.comparisons import interval
from testbed.report.results import LABEL, Results, Rows
from testbed.report.words import number
from testbed.trial.config import TrialConfig
from testbed.trial.specs import ComponentSpec

LAW = ["law", "subject", "dtype", "levels", "failed", "error", "bound", "ratio", "passed", "reason"]
RECIPE = "recipe"
RECIPE_COLUMNS = settings.names(TrialConfig, report=RECIPE)
"""The settings that a recipe has, as the report shows them."""
"""The row of the settings in which variants of an arm differ."""
SHOWN = 4
LEARNING = [*LABEL, "sigma", "n", "eps_rms", "low", "high", "fisher_nats"]


def laws(results: Results) -> pd.DataFrame:
    """tweedie.csv: the worst identity row of each law, subject and dtype, in units of D or F."""
    rows = []
    for key, found in results.identities.groupby(["law", "subject", "dtype"], sort=True):
        # Failures first: one whose ratio is not a number would not be the largest.
        worst = found.sort_values(["passed", "ratio"], ascending=[True, False]).iloc[0]
        failed = int((~found["passed"]).sum())
        numbers = [worst["error"], worst["bound"], worst["ratio"]]
        rows.append([*key, len(found), failed, *numbers, failed == 0, worst["reason"]])
    return pd.DataFrame(rows, columns=LAW)


def learning(results: Results) -> pd.DataFrame:
    """learning.csv: how far trained models are from the exact denoiser, never a pass or a failure.

    eps_rms: sqrt(excess)/sigma, root mean square error of the predicted noise per dimension (1 is
    the size of the noise itself), geometric mean over seeds with its t interval. fisher_nats:
    d excess/sigma^4, the Fisher divergence E|s - s*|^2 of the level.
    """
    rows: list[list[Any]] = []
    table = results.levels
    if "excess" not in table:
        return pd.DataFrame(rows, columns=LEARNING)
    for case in results.cases:
        d = (
            math.prod(results.facts.get(case, {}).get("shape", []))
            if case in results.facts
            else None
        )
        for arm in results.arms(case):
            for variant in results.variants(case, arm):
                found = results.levels_of((case, arm, variant))
                for sigma, excess in found[found["excess"].notna()].groupby("sigma")["excess"]:
                    s = float(str(sigma))
                    rms = np.sqrt(excess.to_numpy()) / s
                    mean = interval(rms, results.level, bool((rms > 0).all()))
                    fisher = d * mean.value**2 / s**2 if d else math.nan
                    rows.append([case, arm, variant, s, len(rms), *mean, fisher])
    return pd.DataFrame(rows, columns=LEARNING)


def decades(results: Results) -> pd.DataFrame:
    """decades.csv: log10(max/min) over sigma of the target's and of the output's rms."""
    rows, coefficients = [], Rows(results.coefficients)
    for case in results.cases:
        for arm in results.arms(case):
            for variant in results.variants(case, arm):
                key = (case, arm, variant)
                target, output = (
                    _span(table.groupby("sigma")[column].mean()) if column in table else math.nan
                    for table, column in (
                        (coefficients[key], "target_rms"),
                        (results.levels_of(key), "output_rms"),
                    )
                )
                rows.append([*key, target, output])
    return pd.DataFrame(rows, columns=[*LABEL, "target", "output"])


def _span(rms: pd.Series[float]) -> float:
    values = rms[np.isfinite(rms) & (rms > 0)]
    return math.log10(values.max() / values.min()) if len(values) else math.nan


def setup(results: Results) -> list[tuple[str, list[str]]]:
    """(row title, one text per case): what was held equal and how large it was."""
    rows: dict[str, list[str]] = {}
    for case in results.cases:
        trials = results.trials[results.trials["case"] == case]
        configs = [c for i in dict.fromkeys(trials["id"]) if (c := results.configs.get(i))]
        facts = results.facts.get(case, {})
        shape = " × ".join(map(str, facts.get("shape", []))) or "?"
        parameters = trials["parameters"].dropna()
        seeds = trials.groupby(["arm", "variant"])["seed"].nunique()
        values = {
            "case": case or "all data",
            "shape": f"{shape} ({'exact oracle' if results.oracle(case) else 'no oracle'})",
            "samples": f"{facts.get('train', '?')} training, {facts.get('test', '?')} held out",
            "linear baseline": facts.get("linear_baseline", {}).get("estimator", "?"),
            "sigma_data": _distinct(map(_sigma_data, configs)),
            "entropy": _entropy(results, case),
            "noise levels": _distinct(map(_range, configs)),
            "measured": _distinct("{:g} to {:g}".format(*c.measured) for c in configs),
            "conditions": _distinct(map(_conditions, configs)),
            "parameters": _distinct(f"{int(n):,}" for n in parameters),
            "seeds": _distinct(str(n) for n in sorted(seeds)),
            **_settings(configs),
        }
        for title, text in values.items():
            rows.setdefault(title, []).append(text)
    return list(rows.items())


def _settings(configs: Sequence[TrialConfig]) -> dict[str, str]:
    """The rows that the settings' own fields ask for: each value that acts, by its name."""
    rows: dict[str, list[str]] = {}
    for config in configs:
        here: dict[str, list[str]] = {}
        for model in (config, config.training):
            for field in settings.fields(type(model)):
                title, value = field.setting.report, getattr(model, field.name)
                if not title or title == RECIPE:
                    continue
                instead = field.setting.replaced_by
                if instead and getattr(model, instead):
                    continue
                name = field.name.replace("_", " ")
                bare = title in (name, "data") or isinstance(value, BaseModel)
                row = here.setdefault(title, [])
                text = name if value is True else f"{value}" if bare else f"{name} {value}"
                row += [text] if value else []
        for title, parts in here.items():
            rows.setdefault(title, []).append(", ".join(parts) or "none")
    return {title: _distinct(texts) for title, texts in rows.items()}


def _entropy(results: Results, case: str) -> str:
    """That of the data at the lowest level, by the oracle's own density."""
    found = results.facts.get(case, {}).get("entropy")
    if not found:
        return "not known"
    value, error, sigma = (found[name] for name in ("value", "error", "sigma"))
    return f"{value:.3g} nats at σ = {sigma:.3g}, ± {error:.2g} (standard error)"


def recipes(results: Results) -> list[list[str]]:
    """arm, variant, and what the axes resolved to; equal variants of an arm in one row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    trials = results.trials
    for arm in dict.fromkeys(trials["arm"]):
        for variant in dict.fromkeys(trials.loc[trials["arm"] == arm, "variant"]):
            here = trials[(trials["arm"] == arm) & (trials["variant"] == variant)]
            configs = [c for i in here["id"] if (c := results.configs.get(i))]
            cells = [
                _distinct(_shown(getattr(c, axis)) for c in configs) for axis in RECIPE_COLUMNS
            ]
            rows.setdefault((arm, *cells), []).append(variant)
    return [[key[0], ", ".join(variants), *key[1:]] for key, variants in rows.items()]


def failures(results: Results) -> list[list[str]]:
    """title, id, status and message of every trial that did not finish."""
    rows = []
    for trial in results.every_trial.drop_duplicates("id").itertuples():
        if trial.status == "finished":
            continue
        what = {
            "diverged": f"loss not finite at step {_integer(trial.diverged_at)}",
            "failed": str(trial.error),
            "cancelled": "cancelled; testbed retry makes it run again",
            "interrupted": "stopped at a checkpoint; the same command resumes it",
            "new": "has not run",
        }.get(str(trial.status), "")
        budget = getattr(trial, "budget", math.nan)
        steps = "" if math.isnan(budget) else f"{budget:.0f} steps"
        fixed = (config := results.configs.get(str(trial.id))) is not None and config.fixed
        seed = "not trained" if fixed else f"seed {trial.seed}"
        parts = (trial.variant, trial.case, trial.arm, steps, seed)
        rows.append(
            [" · ".join(str(p) for p in parts if p), str(trial.id), str(trial.status), what]
        )
    return rows


def provenance(results: Results) -> list[list[str]]:
    """name, kind, origin without its folders, version or short digest of every plugin."""
    rows = []
    for plugin in results.study.get("plugins") or []:
        kind, version = plugin.get("kind", ""), str(plugin.get("version", ""))
        origin = str(plugin.get("origin", ""))
        if kind == "file":
            origin, version = Path(origin).name, f"sha256 {version[:12]}"
        rows.append([str(plugin.get("plugin", "")), kind, origin, version])
    return rows


def command(results: Results) -> str:
    """The command that ran the study, quoted for a shell."""
    words = _asked(results).get("command")
    return shlex.join(map(str, words or ["testbed", "study", "FILE"]))


def overrides(results: Results) -> list[str]:
    """The flags under which the study is not what its file says, each quoted for a shell."""
    asked = _asked(results)
    flags = [["--set", str(word)] for word in asked.get("set") or []]
    flags += [["--only", ",".join(map(str, asked["only"]))]] if asked.get("only") else []
    flags += [["--seeds", str(asked["seeds"])]] if asked.get("seeds") is not None else []
    return [shlex.join(words) for words in flags]


def extent(results: Results) -> str:
    """`part of it: mixture, 3 seeds; changed: training.steps`, or nothing for the whole file."""
    asked = _asked(results)
    part = [*map(str, asked.get("only") or [])]
    if (seeds := asked.get("seeds")) is not None:
        part.append(f"{seeds} {'seed' if seeds == 1 else 'seeds'}")
    keys = [key for key in changed(results) if not key.startswith("study.")]
    if len(keys) > SHOWN:
        keys = [*keys[: SHOWN - 1], f"and {len(keys) - SHOWN + 1} more"]
    found = {"part of it": part, "changed": keys}
    return "; ".join(f"{what}: {', '.join(words)}" for what, words in found.items() if words)


def changed(results: Results) -> list[str]:
    """The keys that `--set` gave, each once."""
    words = _asked(results).get("set") or []
    return list(dict.fromkeys(str(word).partition("=")[0].strip() for word in words))


def _asked(results: Results) -> dict[str, Any]:
    found = results.study.get("asked")
    return found if isinstance(found, dict) else {}


def machine(results: Results) -> list[tuple[str, str]]:
    """Command, device, versions, seeds and times."""
    study = results.study
    versions = study.get("versions") or {}
    once = results.every_trial.drop_duplicates("id")
    training = float(once["training_seconds"].sum())
    rows = [
        ("command", command(results)),
        ("device", str(study.get("device", "unknown"))),
        ("versions", ", ".join(f"{k} {v}" for k, v in versions.items()) or "unknown"),
        ("seeds", ", ".join(map(str, sorted(set(once["seed"]))))),
        ("trials", f"{len(once)}, under {len(results.every_trial)} labels"),
        ("training", f"{number(training)} s in all trials together"),
    ]
    if study.get("seconds"):
        rows.append(("wall clock", f"{number(study['seconds'])} s"))
    return rows


def _range(config: TrialConfig) -> str:
    """`0.002 to 80`, or `0.01 to 80 (930 of 1000 levels)` of a table that this cuts."""
    cut = f" ({config.cut_table})" if config.cut_table else ""
    return f"{config.sigma_min:g} to {config.sigma_max:g}{cut}"


def _conditions(config: TrialConfig) -> str:
    rates = config.conditions.items()
    return ", ".join(f"{name} (dropout {rate:g})" for name, rate in rates) or "none"


def _integer(value: Any) -> str:
    return "?" if value is None or value != value else str(int(value))


def _distinct(values: Iterable[str]) -> str:
    """The different values in the order of their first appearance."""
    return " / ".join(dict.fromkeys(values)) or "?"


def _shown(value: ComponentSpec | str | None) -> str:
    """A part of a recipe, without the range of levels, which has a row of its own."""
    if not isinstance(value, ComponentSpec):
        return value or "none"
    options = {k: v for k, v in value.options.items() if k not in ("sigma_min", "sigma_max")}
    return str(ComponentSpec(name=value.name, options=options))


def _sigma_data(config: TrialConfig) -> str:
    used, measured = config.sigma_data, config.sigma_data_measured
    return number(used) if used == measured else f"{number(used)} set (measured {number(measured)})"
