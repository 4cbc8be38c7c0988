"""Recipes: as their papers have them, and as a study takes them."""

import pytest
from laws import recipes as laws

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
