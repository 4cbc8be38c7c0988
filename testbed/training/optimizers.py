"""What takes the steps: Adam, AdamW and stochastic gradient descent, by torch's own functions.

With the gradient g, the rate eta, and for Adam the bias-corrected moments m^ and v^:

    adam    W <- W - eta m^/(sqrt(v^) + eps)                          (Kingma and Ba 2015, alg. 1)
    adamw   W <- (1 - eta weight_decay) W - eta m^/(sqrt(v^) + eps)   (Loshchilov and Hutter 2019)
    sgd     b <- momentum b + g,  W <- W - eta b;  b = g at the first step

g is that of the loss divided by its value at F = 0. Adam's steps do not depend on the loss's scale
but for eps; those of sgd are proportional to it.
"""

from __future__ import annotations

from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from testbed.training.settings import Training


def descend(
    W: Tensor, G: Tensor, m: Tensor, v: Tensor, steps: Tensor, training: Training, rate: float
) -> None:
    """One step, in place. By function: to make an optimiser costs a second of imports.

    Args:
        W, G: the weights and their gradients, of equal shape.
        m, v: Adam's moments, or in m the momentum b of sgd; zero before the first step.
        steps: (), how many steps Adam has done; counted on here.
        training: which optimiser, with its options.
        rate: the learning rate of this step.
    """
    if training.optimizer == "sgd":
        sgd(
            [W],
            [G],
            [m if training.momentum else None],
            fused=True,
            weight_decay=0.0,
            momentum=training.momentum,
            lr=rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        return
    adam(
        [W],
        [G],
        [m],
        [v],
        [],
        [steps],
        fused=True,
        amsgrad=False,
        beta1=training.betas[0],
        beta2=training.betas[1],
        lr=rate,
        weight_decay=training.weight_decay,
        eps=training.eps,
        maximize=False,
        decoupled_weight_decay=training.optimizer == "adamw",
    )
