"""A step of a batch as a program of its own: traced, put in order, and fused by Inductor.

The trace has the operations of a step without autograd and torch.func. A compiled step goes on from
the gradients to the new weights, so that what lies between them is read and written once:

    m <- m + (1 - beta1)(g - m),  v <- beta2 v + (1 - beta2) g^2,
    W <- (1 - eta weight_decay) W - eta/(1 - beta1^n) m/(sqrt(v)/sqrt(1 - beta2^n) + eps),
    average <- average + (1 - beta)(W - average)

with g clipped as in `Weights.update` (Kingma and Ba 2015, alg. 1; Loshchilov and Hutter 2019).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from testbed.training import rates
from testbed.training.trace import SHAPE, traced
from testbed.training.weights import Weights

aten = torch.ops.aten

OPTIONS = {
    "cpp_wrapper": True,
    "cpp_wrapper_build_separate": True,
    "cpp_cache_precompile_headers": False,
    "cpp.vec_isa_ok": True,
    "aot_inductor.compile_wrapper_opt_level": "O0",
}
"""Of Inductor: two files of C++, one of them with all kernels, since the compiler takes longer for
torch's headers than for any kernel; the vector instructions are those that the processor names. The
other file calls the kernels one after the other, which no optimisation makes faster."""


def transposed(module: fx.GraphModule) -> fx.GraphModule:
    """The module with (a b)^T computed as b^T a^T, in place.

    The gradient of a matrix W (K, out, in) comes from autograd as (x^T g)^T, of which every reader
    makes a copy. The sums are the same, their order is the library's.
    """
    graph = module.graph
    for node in graph.find_nodes(op="call_function", target=aten.transpose.int):
        product = node.args[0]
        if product.target == aten.view.default and _shape(product) == _shape(product.args[0]):
            product = product.args[0]
        if node.args[1:] == (1, 2) and product.target == aten.bmm.default:
            with graph.inserting_before(node):
                turned = [
                    graph.call_function(aten.transpose.int, (one, 1, 2)) for one in product.args
                ]
                node.replace_all_uses_with(graph.call_function(aten.bmm.default, (*turned[::-1],)))
    graph.eliminate_dead_code()
    module.recompile()
    return module


def _shape(node: fx.Node) -> torch.Size:
    shape: torch.Size = node.meta[SHAPE]
    return shape


class Products(fx.Interpreter):
    """Runs a trace, and keeps the seconds of its products of matrices and convolutions."""

    OPERATIONS = (aten.bmm.default, aten.mm.default, aten.baddbmm.default, aten.addmm.default,
                  aten.convolution.default, aten.convolution_backward.default)  # fmt: skip

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seconds = 0.0

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As the trace does, by the clock of the thread where it is a product."""
        if target not in self.OPERATIONS:
            return super().call_function(target, args, kwargs)
        start = time.thread_time()
        found = super().call_function(target, args, kwargs)
        self.seconds += time.thread_time() - start
        return found


def fusable(weights: Weights) -> bool:
    """Whether `CompiledStep` can take the steps of these weights: those of Adam on a CPU."""
    adam = all(group.settings.optimizer != "sgd" for group in weights.groups)
    return adam and weights.W.device.type == "cpu"


@contextlib.contextmanager
def _instructions_as_named() -> Iterator[None]:
    """Takes the processor's word for extensions that Inductor tries one by one: AMX, VNNI, bf16.

    `cpp.vec_isa_ok` is about the vectors alone, and each try takes the compiler half a second.
    """
    from torch._inductor.cpu_vec_isa import VecISA

    tried = VecISA.check_build
    VecISA.check_build = lambda self, code: True  # type: ignore[method-assign]
    try:
        yield
    finally:
        VecISA.check_build = tried  # type: ignore[method-assign]


class CompiledStep:
    """Losses, gradients, their norms, Adam and the averages as one program, compiled at once.

    What was compiled before is found in Inductor's cache.

    Args:
        evaluate: (leaves, *arguments) -> the losses (K, B) and the gradient of each leaf.
        weights: what is trained; `fusable`.
        arguments: those of a step, for their shapes and dtypes.
    """

    def __init__(
        self,
        evaluate: Callable[..., tuple[Tensor, ...]],
        weights: Weights,
        arguments: Sequence[Tensor],
    ) -> None:
        self.weights = weights
        settings = [group.settings for group in weights.groups]
        sizes = torch.tensor([group.rows.stop - group.rows.start for group in weights.groups])
        self._group = torch.repeat_interleave(torch.arange(len(settings)), sizes)
        self._constants = self._columns(
            [[1 - one.betas[0] for one in settings], [one.betas[1] for one in settings],
             [1 - one.betas[1] for one in settings], [one.eps for one in settings]]
        )  # fmt: skip

        def step(
            W: Tensor,
            m: Tensor,
            v: Tensor,
            ema: Tensor,
            constants: Tensor,
            now: Tensor,
            *at: Tensor,
        ) -> tuple[Tensor, Tensor]:
            leaves = [p.detach().requires_grad_() for p in weights.views(W)]
            per_draw, *gradients = evaluate(leaves, *at)
            G = torch.cat([g.reshape(len(W), -1) for g in gradients], dim=1)
            norms = G.square().sum(1).sqrt()
            if weights.clip is not None:
                factors = weights.clip / (weights.units * norms + 1e-6)
                G = G * factors.clamp(max=1.0)[:, None]
            beta, beta2, rest, eps = constants
            size, root, shrink, share = now
            with torch.no_grad():
                m.lerp_(G, beta)
                v.copy_(beta2 * v + rest * G * G)
                W.copy_(shrink * W - size * m / (v.sqrt() / root + eps))
                ema.copy_(ema + share * (W - ema))
            return per_draw, norms

        inputs: list[Any] = [*self._state, self._constants, self._rates(0), *arguments]
        module = transposed(traced(step, *[one.clone() for one in inputs]))
        from torch._inductor import standalone_compile  # seconds, which other steps do without

        with torch.no_grad(), _instructions_as_named():
            self._run = standalone_compile(
                module,
                inputs,
                dynamic_shapes="from_example_inputs",
                options={"config_patches": OPTIONS},
            )

    @property
    def _state(self) -> tuple[Tensor, ...]:
        return self.weights.W, self.weights.m, self.weights.v, self.weights.ema

    def _columns(self, values: Sequence[Sequence[float]]) -> Tensor:
        """(n, K, 1) of values (n, groups)."""
        return torch.tensor(values)[:, self._group, None]

    def _rates(self, step: int) -> Tensor:
        """What depends on the step, (4, K, 1): eta/(1 - beta1^n), sqrt(1 - beta2^n), ..."""
        columns = []
        for _, one, _ in self.weights.groups:
            eta, (beta1, beta2), n = rates.learning_rate(one, step), one.betas, step + 1
            columns.append(
                (
                    eta / (1 - beta1**n),
                    (1 - beta2**n) ** 0.5,
                    1 - eta * one.weight_decay,
                    1 - rates.decay(one, step),
                )
            )
        return self._columns([*zip(*columns, strict=True)])

    def __call__(self, step: int, arguments: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Takes the step; its losses (K, B), and the norms of the gradients (K,)."""
        with torch.no_grad():
            inputs = *self._state, self._constants, self._rates(step), *arguments
            per_draw, norms = self._run(*inputs)
        for group in self.weights.groups:
            group.steps.add_(1)
        return per_draw, norms
