"""Recipes: as their papers have them, and as a study takes them."""

from pathlib import Path
from typing import Any

import pytest
from helpers.studies import SMALL, planned
from laws import recipes as laws

from testbed.components.recipe import STATED, Recipe, Source
from testbed.errors import InputError
from testbed.study import plan
from testbed.trial import recipes

NAMES = laws.REGISTRY.names("recipe")


@pytest.mark.parametrize("sigma_data", laws.SIGMA_DATAS)
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_that_of_its_paper(name: str, sigma_data: float) -> None:
    subject = laws.trained(laws.REGISTRY.recipe(name), sigma_data)
    paper = laws.papers(sigma_data)[name]
    laws.law_weight_and_density_are_the_paper_s(subject, paper)
    laws.law_inputs_are_the_paper_s(subject, paper)
    laws.law_network_is_asked_for_what_the_paper_asks(subject, paper)


@pytest.mark.parametrize("sigma_data", laws.SIGMA_DATAS)
@pytest.mark.parametrize("name", ["ve", "ve_karras", "vp_karras"])
def test_the_levels_are_those_of_the_paper(name: str, sigma_data: float) -> None:
    subject = laws.trained(laws.REGISTRY.recipe(name), sigma_data)
    laws.law_levels_are_the_paper_s(subject, laws.papers(sigma_data)[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_where_it_has_each_choice_from(name: str) -> None:
    recipe = laws.REGISTRY.recipe(name)
    left_out = {"table"} if recipe.table is None else set()
    left_out |= {"output"} if recipe.output == "F" else set()
    assert recipe.equations.keys() == recipe.sources.keys() == {*STATED} - left_out


@pytest.mark.parametrize(
    ("medium", "where", "said"),
    [
        ("papers", "", "Unknown medium of a source 'papers'. Did you mean 'paper'?"),
        ("code", " ", "A source in 'code' says in `where` which one it is."),
        ("cited", "", "A source in 'cited' says in `where` which one it is."),
    ],
)
def test_a_source_that_says_too_little(medium: Any, where: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        Source(medium, where)
    assert said in str(error.value)


@pytest.mark.parametrize("field", ["equations", "sources"])
def test_a_source_of_what_no_recipe_has(field: str) -> None:
    stated: Any = {field: {"wieghting": Source("paper")}}
    with pytest.raises(InputError, match=f"{field} has 'wieghting', and its keys are prediction"):
        Recipe("one", density="lognormal", **stated)


# --- a recipe of another parameterization ---------------------------------------------------------

OWNERS = {
    "ddpm": ("eps",), "edm": ("edm",), "edm2": ("edm",), "jit": ("x0",), "ncsn": ("score",),
    "progressive_v": ("v",), "progressive_x0": ("x0",), "rectified_flow": ("flow",),
    "trigflow": ("trigflow",), "ve": ("score",), "ve_karras": ("score",), "vp_karras": ("eps",),
}  # fmt: skip
"""Whose papers they are of."""


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_knows_what_it_was_published_with(name: str) -> None:
    recipe = laws.REGISTRY.recipe(name)
    assert recipes.published_with(recipe, laws.REGISTRY) == OWNERS[name]
    assert recipes.note(name, OWNERS[name], laws.REGISTRY) == ""


def test_of_a_recipe_that_nobody_names_nothing_is_said() -> None:
    nobodys = Recipe("nobodys", density="lognormal")
    assert recipes.published_with(nobodys, laws.REGISTRY) == ()


@pytest.mark.parametrize(
    ("grid", "sets", "note"),
    [
        ('["v"]', ("recipe=ddpm",), "recipe ddpm was published with eps: to train v by it is"),
        ('["v", "eps", "x0"]', ("recipe=ddpm",), "with eps: to train v, x0 by it is a setting"),
        ('["eps"]', ("recipe=ddpm",), ""),
        ('["score"]', ("recipe=ncsn",), ""),
        ('["v"]', (), ""),
        ('["v"]', ("recipe=own",), ""),
    ],
)
def test_the_plan_says_that_a_recipe_is_another_ones(
    tmp_path: Path, grid: str, sets: tuple[str, ...], note: str
) -> None:
    text = SMALL.replace('["v"]', grid)
    if any("ddpm" in word or "ncsn" in word for word in sets):
        text = text.replace('"mlp", ', '"mlp_index", ')
    made = planned(text, tmp_path, *sets)
    said = [line for line in plan.notes(made) if line.startswith("recipe ")]
    assert len(said) == bool(note)
    assert note in "".join(said)
    assert made.data_notes.get("", []) == said


def test_the_note_is_of_the_arm_that_names_the_recipe(tmp_path: Path) -> None:
    arms = '[arms]\nown = {}\nequal = { recipe = "edm" }\n'
    grid = SMALL.replace('["v"]', '["v", "edm", "flow"]')
    (note,) = planned(grid + arms, tmp_path).data_notes[""]
    assert note.startswith("recipe edm was published with edm: to train v, flow by it is")
