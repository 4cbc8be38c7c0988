"""The results of a study in Python: its tables, figures and LaTeX, from its folder alone."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from testbed import notebook
from testbed.errors import InputError, UnknownName, one_line, unknown
from testbed.report import comparisons, finding, latex, lengths, page, result_tables, tables
from testbed.report.claims import Finding
from testbed.report.comparisons import Comparisons, Versus
from testbed.report.drawing import Picture, inches
from testbed.report.reading import read
from testbed.report.results import Results, Rows
from testbed.report.words import between, effect_text, probability, title
from testbed.trial.study_folder import begun

LATEX = ("results", "comparisons")
"""The tables that `StudyResult.to_latex` writes."""


@dataclass(frozen=True, repr=False)
class StudyResult:
    """A study's results: `testbed.open(folder)`, and what `testbed.run` returns.

    The tables are those of the folder `tables/`; the report's page explains their columns.

    Args:
        folder: the study's folder.
        content: what was read of it.
        compared: all comparisons of the study, corrected within their families.
    """

    folder: Path
    content: Results
    compared: Comparisons

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table by the stem of its file."""
        return tables.make(self.content, self.compared)

    @property
    def trials(self) -> pd.DataFrame:
        """A row for each label, seed and metric (trials.csv)."""
        return self.tables["trials"]

    @property
    def results(self) -> pd.DataFrame:
        """Every metric of each variant with its interval over seeds (results.csv)."""
        return self.tables["results"]

    @property
    def comparisons(self) -> pd.DataFrame:
        """Every comparison with its ratio, interval, p and verdict (comparisons.csv)."""
        return self.tables["comparisons"]

    @property
    def levels(self) -> pd.DataFrame:
        """Losses by noise level, each with its interval over seeds (levels.csv)."""
        return self.tables["levels"]

    @property
    def stages(self) -> pd.DataFrame:
        """Every metric at points of training, at other budgets, with other averages (stages.csv).

        It has no row where the study asked for none of these; so have the next two.
        """
        return self.tables.get("stages", lengths.stage_table(self.content))

    @property
    def crossings(self) -> pd.DataFrame:
        """Where each variant's curve over the steps crosses its baseline's (crossings.csv)."""
        return self.tables.get("crossings", pd.DataFrame(columns=lengths.CROSSING))

    @property
    def averages(self) -> pd.DataFrame:
        """Comparisons with averages of other lengths, and of each at its best (averages.csv)."""
        return self.tables.get("averages", pd.DataFrame(columns=["average", *self.comparisons]))

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.content.study.get("name", self.folder.name))

    @cached_property
    def _findings(self) -> list[Finding]:
        return finding.make(self.content, self.compared)

    @property
    def finding(self) -> str:
        """What the report says first."""
        return " ".join(" ".join([one.title, *one.sentences]).strip() for one in self._findings)

    @cached_property
    def figures(self) -> dict[str, Picture]:
        """Every figure of the report by the stem of its file; a notebook shows one as it is."""
        return {one.name: one for one in self._pictures()}

    def _pictures(self, column: float | None = None) -> Iterable[Picture]:
        for case in self.content.cases:
            view = page.case_view(self.content, self.compared, self.tables, case, column)
            yield from view.every_picture

    def statuses(self) -> dict[str, int]:
        """How many trials have each status: finished, diverged, failed, interrupted or new."""
        once = self.content.every_trial.drop_duplicates("id")["status"]
        return {str(status): int(count) for status, count in once.value_counts().items()}

    def to_latex(self, table: str = "results", case: str | None = None) -> str:
        r"""Returns a table with the rules of booktabs, one for each case that has rows.

        Args:
            table: "results", the metrics of each variant with their intervals and the comparison
                with the baseline; or "comparisons", all comparisons.
            case: The only case to write; all of them by default.

        Returns:
            LaTeX; the document needs `\usepackage{booktabs}`.

        Raises:
            UnknownName: There is no such table or case.
        """
        if table not in LATEX:
            raise UnknownName(unknown("table", table, LATEX))
        cases = self.content.cases
        if case is not None and case not in cases:
            raise UnknownName(unknown("case", case, cases))
        make = self._results_latex if table == "results" else self._comparisons_latex
        texts = (make(one) for one in (cases if case is None else [case]))
        return "\n".join(filter(None, texts))

    def _results_latex(self, case: str) -> str:
        names = self.content.metric_names(case)
        rows, of_label = [], Rows(self.results)
        for arm in self.content.arms(case):
            for variant in self.content.variants(case, arm):
                found = of_label[case, arm, variant].set_index("metric")
                metrics = {name: dict(found.loc[name]) for name in names}
                first, *others = (_mean(metrics[name]) for name in names)
                versus = _versus(self.compared.to_baseline(case, arm, variant))
                seeds = str(metrics[names[0]]["n"])
                rows.append([arm, variant, seeds, first, *versus, *others])
        head = ["arm", "variant", "seeds", title(names[0]), "effect", "verdict"]
        head += map(title, names[1:])
        level = f"{self.content.level:.0%}"
        what = f"mean over seeds with {level} t interval, effect against the baseline"
        caption = f"{case or 'All data'}: {what}; lower is better."
        return latex.table(*_without_empty(head, rows), caption, f"tab:results-{case or 'data'}")

    def _comparisons_latex(self, case: str) -> str:
        here = self.comparisons[self.comparisons["case"] == case]
        rows = []
        for row in here.to_dict("records"):
            ratio, *bounds = (float(row[name] or np.nan) for name in ("ratio", "low", "high"))
            effect = "–" if np.isnan(ratio) else effect_text(ratio, *bounds)
            p = float("nan") if row["p_holm"] is None else float(row["p_holm"])
            arms = dict.fromkeys([str(row["arm"]), str(row["against_arm"])])
            against = f"{row['variant']} / {row['against']}"
            cells = [str(row["kind"]), " / ".join(filter(None, arms)), against]
            rows.append([*cells, effect, probability(p), str(row["verdict"])])
        if not rows:
            return ""
        head = ["family", "arm", "compared", "effect", "p (Holm)", "verdict"]
        metric = title(self.content.primary(case))
        level = f"{self.content.level:.0%}"
        caption = (
            f"{case or 'All data'}: effects on {metric}, paired by seed, with {level} t interval."
        )
        name = f"tab:comparisons-{case or 'data'}"
        return latex.table(*_without_empty(head, rows), caption, name)

    def write_paper(self, folder: str | Path, width: str = "84mm") -> list[Path]:
        """Writes the figures as PDF and SVG at a column's width, and the tables as LaTeX.

        Args:
            folder: The folder to write to; it is made where it is not there.
            width: The width of every figure with its unit, for example "84mm" or "3.25in".

        Returns:
            The files.

        Raises:
            InputError: The width is none.
        """
        column = inches(width)
        at = Path(folder)
        at.mkdir(parents=True, exist_ok=True)
        files: dict[str, bytes] = {f"{name}.tex": self.to_latex(name).encode() for name in LATEX}
        for picture in self._pictures(column):
            files |= {
                f"{picture.name}.pdf": picture.pdf,
                f"{picture.name}.svg": picture.svg.encode(),
            }
        for name, content in files.items():
            (at / name).write_bytes(content)
        return [at / name for name in files]

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {status}" for status, count in self.statuses().items())
        return f"<StudyResult {self.name!r}: trials {counts}; {self.folder}>"

    def _repr_html_(self) -> str:
        return "".join([*map(_first_screen, self._findings), self._means()])

    def _means(self) -> str:
        """The primary metric of each variant, as HTML."""
        names = ["case", "arm", "variant"]
        rows = [
            [*(str(row[name]) for name in names), str(row["n"]), title(row["metric"]), _mean(row)]
            for row in self.results.to_dict("records")
            if row["metric"] == self.content.primary(row["case"])
        ]
        return notebook.table([*names, "seeds", "metric", "mean"], rows, repr(self)[1:-1])


def open(folder: str | Path) -> StudyResult:
    """The results of a study, from its folder; nothing is trained or written.

    Args:
        folder: the study's folder, for example "runs/default", or its URL.

    Raises:
        InputError: the folder holds no study, or its files are damaged.
    """
    files = begun(folder)
    files.json("study.json")
    at = files.path
    try:
        results = read(at)
        return StudyResult(at, results, comparisons.make(results))
    except (InputError, OSError):
        raise
    except Exception as problem:  # a damaged file raises whatever its damage leads to
        raise InputError(f"{at}: its files cannot be read: {one_line(problem)}") from problem


def _first_screen(one: Finding) -> str:
    """What the first screen of the report says of a case, or of all, as HTML."""
    parts = [f"<h4>{html.escape(one.title)}</h4>"] if one.title else []
    parts += [f"<p>{html.escape(' '.join(one.opening))}</p>"] if one.opening else []
    parts += [notebook.table(one.claims.head, one.claims.rows)] if one.claims else []
    return "".join(parts)


def _mean(row: dict[Any, Any]) -> str:
    """A metric of a variant with its interval, or how many of its trials diverged."""
    if row["diverged"]:
        return f"diverged in {row['diverged']} of {row['n']}"
    return between(row["value"], row["low"], row["high"])


def _versus(one: Versus | None) -> tuple[str, str]:
    """The effect against the baseline with its interval, and the verdict."""
    effect, _, verdict = result_tables.versus(one)
    return effect.text, verdict.text


def _without_empty(
    head: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """A table without the columns that are empty in every row, such as that of the only arm."""
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return [head[i] for i in kept], [[row[i] for i in kept] for row in rows]
