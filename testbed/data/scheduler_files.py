"""The noise levels of a scheduler of diffusers, from its scheduler_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from testbed.diffusion import noise_levels
from testbed.errors import InputError, one_line, unknown

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
CHANGES = {
    "invert_sigmas": False,
    "shift_terminal": None,
    "snr_shift_scale": 1.0,
    "use_dynamic_shifting": False,
}
"""Keys that change the levels in ways that are not read here, with the value that changes none."""
OF_SAMPLING = {
    "algorithm_type", "base_image_seq_len", "base_shift", "clip_sample", "clip_sample_range",
    "corrector_order", "disable_corrector", "dynamic_thresholding_ratio", "eta",
    "euler_at_final", "final_sigmas_type", "interpolation_type", "lambda_min_clipped",
    "lower_order_final", "max_image_seq_len", "max_shift", "original_inference_steps",
    "predict_x0", "prediction_type", "predictor_order", "sample_max_value", "scale_factors",
    "set_alpha_to_one", "sigma_max", "sigma_min", "skip_prk_steps", "solver_order", "solver_p",
    "solver_type", "steps_offset", "stochastic_sampling", "thresholding", "time_shift_type",
    "timestep_scaling", "timestep_spacing", "timestep_type", "upscale_mode", "use_beta_sigmas",
    "use_exponential_sigmas", "use_karras_sigmas", "use_lu_lambdas", "variance_type",
}  # fmt: skip
"""Keys that say at which levels a sampler stops and what it does there, not which levels are."""
OF_LEVELS = {
    "beta_end", "beta_schedule", "beta_start", "flow_shift", "num_train_timesteps",
    "rescale_betas_zero_snr", "shift", "trained_betas", "use_flow_sigmas",
}  # fmt: skip
"""Keys that say which levels there are."""


def read(file: Path) -> dict[str, Any]:
    """The keys of a scheduler_config.json that its levels come from.

    Raises:
        InputError: the file cannot be read as JSON, or `sigmas_of` refuses it.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"path = {str(file)!r} cannot be read: {one_line(problem)}.") from None
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{file} cannot be read as JSON: {one_line(problem)}.") from None
    try:
        found = used(config)
        sigmas_of(found)
    except InputError as problem:
        raise InputError(f"{file}: {problem}") from None
    return found


def used(config: Any) -> dict[str, Any]:
    """The keys of a configuration that its levels come from.

    Raises:
        InputError: no configuration of a scheduler with betas or of flow matching, a key that
            changes the levels in another way, or one that is not known.
    """
    stated: dict[str, Any] = {}
    if isinstance(config, Mapping):
        stated = {key: value for key, value in config.items() if value is not None}
    if not stated.keys() & {"beta_schedule", "trained_betas", "shift"}:
        raise InputError(
            "no scheduler of diffusers with known levels: expected the key beta_schedule, "
            "trained_betas or shift."
        )
    kind = str(stated.get("_class_name", "FlowMatch"))
    if "shift" in stated and not kind.startswith("FlowMatch"):
        raise InputError(
            f"_class_name = {kind!r}: of schedulers with the key shift, only FlowMatch... are read."
        )
    for key, value in stated.items():
        if key in CHANGES and value != CHANGES[key]:
            expected = json.dumps(CHANGES[key])
            raise InputError(
                f"{key} = {json.dumps(value)} changes the levels in a way that is not read here: "
                f"expected {expected}."
            )
        if not key.startswith("_") and key not in {*CHANGES, *OF_SAMPLING, *OF_LEVELS}:
            raise InputError(
                f"{unknown('key', key, OF_LEVELS)} If it leaves the levels as they are, remove it."
            )
    if "shift" in stated:
        names = ["num_train_timesteps", "shift"]
    elif stated.get("use_flow_sigmas"):
        names = ["beta_schedule", "num_train_timesteps", "use_flow_sigmas", "flow_shift"]
    elif "trained_betas" in stated:
        names = ["trained_betas", "rescale_betas_zero_snr"]
    elif stated.get("beta_schedule") == "squaredcos_cap_v2":
        names = ["beta_schedule", "num_train_timesteps", "rescale_betas_zero_snr"]
    else:
        names = [
            "beta_schedule", "num_train_timesteps", "beta_start", "beta_end",
            "rescale_betas_zero_snr",
        ]  # fmt: skip
    return {name: stated[name] for name in names if name in stated}


def sigmas_of(config: Any) -> Tensor:
    """The levels of a scheduler's configuration, (n,) float64.

    Raises:
        InputError: as `used`; another beta_schedule, or a key that is missing or of another type.
    """
    keys = used(config)
    if "shift" in keys or keys.get("use_flow_sigmas"):
        shift = _number(keys, "shift" if "shift" in keys else "flow_shift")
        return noise_levels.flow_sigmas(_whole(keys, "num_train_timesteps"), shift)
    try:
        sigmas = noise_levels.sigmas_of(_betas(keys), "betas")
    except InputError as problem:
        listed = "trained_betas" in keys
        raise InputError(f"trained_betas: {problem}" if listed else str(problem)) from None
    rescale = keys.get("rescale_betas_zero_snr", False)
    if not isinstance(rescale, bool):
        raise InputError(f"rescale_betas_zero_snr = {rescale!r}: expected true or false.")
    return noise_levels.zero_terminal(sigmas) if rescale else sigmas


def _betas(keys: Mapping[str, Any]) -> Tensor:
    """The betas of a scheduler, (n,) float64.

    Raises:
        InputError: another beta_schedule, or a key that is missing or of another type.
    """
    if "trained_betas" in keys:
        values = keys["trained_betas"]
        if not isinstance(values, list | tuple) or not all(map(_is_number, values)):
            raise InputError("expected a list of numbers.")
        return torch.tensor(values, dtype=torch.float64)
    schedule, n = keys.get("beta_schedule"), _whole(keys, "num_train_timesteps")
    if schedule not in BETA_SCHEDULES:
        raise InputError(unknown("beta_schedule", str(schedule), BETA_SCHEDULES))
    if schedule == "squaredcos_cap_v2":
        return noise_levels.cosine_betas(n)
    start, end = _number(keys, "beta_start"), _number(keys, "beta_end")
    if schedule == "linear":
        return noise_levels.linear_betas(n, start, end)
    return noise_levels.scaled_linear_betas(n, start, end)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(keys: Mapping[str, Any], name: str) -> float:
    """A key's number.

    Raises:
        InputError: the key is missing, or has no number.
    """
    if not _is_number(keys.get(name)):
        found = f"{name} = {keys[name]!r}" if name in keys else f"there is no {name}"
        raise InputError(f"{found}: expected a number.")
    return float(keys[name])


def _whole(keys: Mapping[str, Any], name: str) -> int:
    """A key's whole number.

    Raises:
        InputError: the key is missing, or has no whole number.
    """
    number = _number(keys, name)
    if not number.is_integer():
        raise InputError(f"{name} = {keys[name]!r}: expected a whole number.")
    return int(number)
