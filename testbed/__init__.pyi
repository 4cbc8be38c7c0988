"""The public names, each with the module that it comes from."""

from . import audit, oracles, selftest, testing
from .checkpoints.diffusers_folders import load_diffusers
from .checkpoints.weights import load_weights
from .checkpoints.wrappings import wrap
from .components.condition import ConditionTable
from .components.dataset import Data, Dataset
from .components.density import Density
from .components.guidance import Guidance
from .components.loss import Loss, squared
from .components.metric import Embedding, Metric, MetricValue
from .components.network import Network
from .components.recipe import Recipe, Source
from .components.sampler import Sampler
from .components.schedule import Schedule
from .components.signature import Limits
from .components.weighting import Weighting
from .diffusion import noise_levels
from .diffusion.correlated import Noise
from .diffusion.denoiser import Denoiser
from .diffusion.noise_tables import NoiseTable
from .diffusion.parameterization import Coefficients, Parameterization
from .diffusion.predictions import convert
from .hookspecs import hookimpl
from .registry import Registry
from .report.study_result import StudyResult, open
from .sampling.likelihood import bits_per_dim, log_likelihood
from .sampling.loop import sample
from .sampling.pipeline import Pipeline
from .study.definition import Study
from .training.settings import Training
from .trial.diffusers_pipeline import diffusers_pipeline
from .trial.restore import load, pipeline
from .workflow.run import run

__version__: str
__all__ = [
    "Coefficients",
    "ConditionTable",
    "Data",
    "Dataset",
    "Denoiser",
    "Density",
    "Embedding",
    "Guidance",
    "Limits",
    "Loss",
    "Metric",
    "MetricValue",
    "Network",
    "Noise",
    "NoiseTable",
    "Parameterization",
    "Pipeline",
    "Recipe",
    "Registry",
    "Sampler",
    "Schedule",
    "Source",
    "Study",
    "StudyResult",
    "Training",
    "Weighting",
    "audit",
    "bits_per_dim",
    "convert",
    "diffusers_pipeline",
    "hookimpl",
    "load",
    "load_diffusers",
    "load_weights",
    "log_likelihood",
    "noise_levels",
    "open",
    "oracles",
    "pipeline",
    "run",
    "sample",
    "selftest",
    "squared",
    "testing",
    "wrap",
]
