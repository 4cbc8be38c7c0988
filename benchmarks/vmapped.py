"""The training step of K trials as one would write it in JAX: vmap of the loss's gradient, jit.

The network is the residual MLP, the loss l2 on the side of F, the optimiser Adam with an average of
the weights; gradient norms and losses by noise level are kept as ours are. A block of steps is one
compiled program, a scan over its steps, whose state is handed on without a copy.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Before JAX is imported: products on the calling thread alone, as torch has them.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"

import jax
import jax.numpy as jnp
import torch
from jax import Array, lax

from testbed.training.batch import Batch

LAYER_NORM_EPS = 1e-5

Tree = dict[str, Array]


def cached(folder: Path) -> None:
    """Keeps everything that is compiled from here on in a folder, and takes it from there."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _linear(p: Tree, name: str, x: Array) -> Array:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def _norm(p: Tree, name: str, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + LAYER_NORM_EPS)
    return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]


def network(p: Tree, frequencies: Array, depth: int, x: Array, c_noise: Array) -> Array:
    """F (B, d) of x (B, d) and c_noise (B,)."""
    phase = c_noise[:, None] * frequencies
    waves = jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=1)
    embedding = jax.nn.silu(_linear(p, "noise", waves))
    h = _linear(p, "first", x)
    for i in range(depth):
        inner = _linear(p, f"blocks.{i}.inner", jax.nn.silu(_norm(p, f"blocks.{i}.norm", h)))
        h = h + _linear(p, f"blocks.{i}.outer", jax.nn.silu(inner + embedding))
    return _linear(p, "last", _norm(p, "norm", h))


class Vmapped:
    """Trains the trials of a `Batch` from its weights, with the inputs that it is given.

    Args:
        batch: trials of the residual MLP with one set of settings for all, without clipping.
    """

    def __init__(self, batch: Batch) -> None:
        training = batch.training
        assert all(one.training == training for one in batch.trials)
        assert not training.clip
        assert training.optimizer == "adam"
        views = batch.weights.views(batch.weights.W)
        # Copies: what is handed on from step to step is written over.
        params = {
            n: jnp.array(_array(v), copy=True) for n, v in zip(batch.names, views, strict=True)
        }
        self.names = list(params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        copies = (jax.tree.map(jnp.copy, tree) for tree in (zeros, zeros, params))
        self.state: Any = (params, *copies, jnp.zeros((), jnp.float32))
        self._block = jax.jit(_program(batch), donate_argnums=0)

    def run(self, steps: Iterable[tuple[torch.Tensor, ...]], bins: torch.Tensor) -> tuple[Any, ...]:
        """Trains a block; its losses by bin, mean losses and gradient norms, when it is done.

        Args:
            steps: the arguments of each step, as `Batch` evaluates it.
            bins: (n, K, B) int64, the bin of each draw.
        """
        inputs = tuple(_array(torch.stack(parts)) for parts in zip(*steps, strict=True))
        return self.trained(inputs, _array(bins))

    def trained(self, inputs: tuple[Array, ...], bins: Array) -> tuple[Any, ...]:
        """As `run`, from arrays that are there."""
        self.state, *found = self._block(self.state, inputs, bins)
        return tuple(jax.block_until_ready(found))

    def weights(self) -> torch.Tensor:
        """(K, P), as in the buffer of a `Batch`."""
        parts = [torch.utils.dlpack.from_dlpack(self.state[0][name]) for name in self.names]
        return torch.cat([part.reshape(len(part), -1) for part in parts], dim=1).cpu()


def _array(tensor: torch.Tensor) -> Array:
    found: Array = jnp.asarray(tensor.detach().cpu().numpy())
    return found


def _program(batch: Batch) -> Any:
    """(state, inputs (n, ...), bins (n, K, B)) -> the state after n steps, and what is kept."""
    training, trials, scale = batch.training, len(batch.trials), _array(batch.scale)
    frequencies = _array(batch.buffers["embed_noise.frequencies"])
    depth = sum(name.endswith("inner.weight") for name in batch.names)
    seed_index = _array(batch.seed_index)
    beta1, beta2 = training.betas

    def loss(p: Tree, scale: Array, x0: Array, eps: Array, at: tuple[Array, ...]) -> Any:
        sigma, c_in, c_noise, k, _, a, b, *_ = at
        x = x0 + sigma[:, None] * eps
        F = network(p, frequencies, depth, c_in[:, None] * x, c_noise)
        residual = F - (a[:, None] * x0 + b[:, None] * eps)
        per_draw = (k[:, None] * jnp.square(residual)).mean(1) / scale
        return per_draw.mean(), per_draw

    gradient = jax.vmap(jax.grad(loss, has_aux=True))

    def step(state: Any, inputs: tuple[Array, ...]) -> Any:
        W, m, v, ema, t = state
        x0, eps, *at = inputs
        x0, eps = (one.reshape(*one.shape[:2], -1) for one in (x0, eps))
        g, per_draw = gradient(W, scale, x0[seed_index], eps[seed_index], tuple(at))
        squares = [jnp.square(one).reshape(trials, -1).sum(1) for one in jax.tree.leaves(g)]
        norm = jnp.sqrt(sum(squares))
        m = jax.tree.map(lambda m, g: m + (1 - beta1) * (g - m), m, g)
        v = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, v, g)
        size = training.learning_rate / (1 - beta1 ** (t + 1))
        root = jnp.sqrt(1 - beta2 ** (t + 1))
        W = jax.tree.map(
            lambda W, m, v: W - size * m / (jnp.sqrt(v) / root + training.eps), W, m, v
        )
        decay = jnp.minimum(training.ema, (1 + t) / (10 + t))
        ema = jax.tree.map(lambda e, W: e + (1 - decay) * (W - e), ema, W)
        return (W, m, v, ema, t + 1), (per_draw, norm)

    def block(state: Any, inputs: tuple[Array, ...], bins: Array) -> Any:
        state, (per_draw, norms) = lax.scan(step, state, inputs)
        flat, places = per_draw.reshape(-1), bins.reshape(-1)
        count = batch.BINS * trials
        sums = jnp.zeros(count).at[places].add(flat)
        counts = jnp.zeros(count).at[places].add(jnp.ones_like(flat))
        return state, sums / counts, per_draw.mean(2), norms

    return block


assert math.isclose(torch.nn.LayerNorm(1).eps, LAYER_NORM_EPS)
