"""NAME: the choices with which a paper trained.

EDIT this text and the recipe; then `testbed check NAME.py`. As it stands, EDM's weighting with a
broader distribution of noise levels.
"""

import testbed


@testbed.hookimpl
def testbed_recipes():
    yield testbed.Recipe(
        "NAME",
        # EDIT: what the paper trained. What is left out is as in docs/reference/hooks.md.
        parameterization="edm",
        density={"name": "lognormal", "mean": -0.8, "std": 1.6},
        weighting="edm",
        # EDIT: levels in units of the data's sigma_data, where the paper's data have another one.
        sigma_min="0.004 * sigma_data",
        sigma_max="160 * sigma_data",
        # EDIT: the paper, where in it each choice stands, and what you read it in.
        reference="Karras et al. 2022, arXiv:2206.00364",
        equations={"weighting": "table 1"},
        sources={"weighting": testbed.Source("cited", "Karras et al. 2024, eq. 15")},
        # EDIT: a sentence for each way in which a trial is not what the paper trained.
        deviations=("The density is broader than the paper's.",),
    )
