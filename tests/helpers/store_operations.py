"""What a store answers after the same operations, to compare one kind of store with another."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from testbed.trial.storage import Store

NAMES = "abc"


def answers(store: Store, seed: int, operations: int = 40) -> Iterator[tuple[Any, ...]]:
    """Yields each operation, drawn by `seed`, with all that the store says after it."""
    draw = random.Random(seed)
    stores = [store, store.folder("inner"), store.folder("inner").folder("deep")]
    for n in range(operations):
        at = draw.randrange(len(stores))
        name, other = draw.choice(NAMES), draw.choice(NAMES)
        word = draw.choice(["put", "put", "append", "rename", "remove"])
        one = stores[at]
        if word == "rename" and not one.has(name):
            word = "put"
        match word:
            case "put":
                one.put(name, f"{n} ".encode())
            case "append":
                one.append(name, f"{n}\n".encode())
            case "rename":
                one.rename(name, to=other)
            case "remove":
                one.remove(name, other)
        held = [[(name, one.get(name), one.has(name)) for name in NAMES] for one in stores]
        yield word, at, name, other, held, [one.names() for one in stores]
