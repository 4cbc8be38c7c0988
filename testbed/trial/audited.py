"""The audit of a trained trial: its own data and oracle, its own weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from testbed import audit
from testbed.errors import InputError, UnknownName
from testbed.registry import Registry
from testbed.trial import restore


def is_trial(word: str, registry: Registry) -> bool:
    """Whether a word of the command line means a trial, and neither a name nor a factory.

    Raises:
        UnknownName: it means none of these.
    """
    try:
        audit.find(word, registry)
    except UnknownName:
        try:
            restore.find(word)
        except InputError:
            pass
        else:
            return True
        raise
    return False


def run(
    trial: str, parts: Sequence[str] = audit.PARTS, say: Callable[[str], None] = lambda text: None
) -> audit.Audit:
    """Identities of what the trained model is made of, and the size of what it missed.

    Args:
        trial: its folder, or the first letters of its id below ./runs.
        parts: as for `testbed.audit.run`.
        say: is told what is being checked.

    Raises:
        InputError: no such trial, or one without weights yet.
    """
    denoiser, data, config, _ = restore.restore(trial)
    name = f"{restore.find(trial).name} ({config.parameterization.name})"
    return audit.run(
        denoiser, name=name, held_out=data.test, oracle=data.oracle, parts=parts, say=say
    )
