"""The whole catalogue of wrong components, and what its parts are made of."""

from mutants.wrong import CATALOGUE, Wrong
from mutants.wrong_parameterizations import edm_with, plain, r_of, v_target, v_with
from mutants.wrong_processes import OTHER_PROCESSES

__all__ = [
    "CATALOGUE",
    "OTHER_PROCESSES",
    "Wrong",
    "edm_with",
    "plain",
    "r_of",
    "v_target",
    "v_with",
]
