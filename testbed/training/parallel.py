"""One training over several processes: each has a part of every batch, and all have the weights.

Every process draws the whole batch from the trial's own streams, so that the draws do not depend
on how many there are, and takes its part. The gradient is the sum of the parts': in two processes
it is that of `training.accumulation = 2` in one, bit for bit. DistributedDataParallel does the same
sum in hooks of `backward`, which this training, with its weights in one buffer, does not call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train one trial together, as one of them sees them."""

    rank: int
    size: int

    @classmethod
    def join(cls, rank: int, size: int, meeting: Path, device: torch.device) -> ProcessGroup:
        """Waits for the others at a file that all of them can write."""
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        where = f"file://{meeting}"
        distributed.init_process_group(backend, where, rank=rank, world_size=size)
        return cls(rank, size)

    def leave(self) -> None:
        """Ends what `join` began."""
        distributed.destroy_process_group()

    def summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor, added up over the processes in one message."""
        flat = torch.cat([one.flatten() for one in tensors])
        distributed.all_reduce(flat)
        parts = flat.split_with_sizes([one.numel() for one in tensors])
        return [part.view_as(one) for part, one in zip(parts, tensors, strict=True)]

    def gathered(self, values: Tensor, dim: int) -> Tensor:
        """The values of all processes, in their order."""
        found = [torch.empty_like(values) for _ in range(self.size)]
        distributed.all_gather(found, values.contiguous())
        return torch.cat(found, dim)

    def shared(self, tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """The tensors of the first process; those of the others have the same names and shapes."""
        found = {}
        for name in sorted(tensors):
            found[name] = tensors[name].to(device, copy=True).contiguous()
            distributed.broadcast(found[name], 0)
        return found

    def agreed(self, word: bool, device: torch.device) -> bool:
        """What the first process says."""
        said = torch.tensor([word], dtype=torch.int32, device=device)
        distributed.broadcast(said, 0)
        return bool(said)
