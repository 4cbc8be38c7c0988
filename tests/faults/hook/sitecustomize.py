"""On the path of a study under test: ends a process where Python does a named thing the k-th time.

FAULT in the environment is JSON: `event` of sys.audit, `path` (a pattern for the end of what it
names), `count`, `victim` ("group", "driver" or "self") and `mark`, a file that is made first, so
that one process of many dies, once.
"""

import json
import os
import signal
import sys
from fnmatch import fnmatch

NAMED = {"os.rename": 1}
WRITES = os.O_WRONLY | os.O_RDWR


def kill(victim):
    session = os.getsid(0)
    if victim == "group":
        os.killpg(session, signal.SIGKILL)
    os.kill(session if victim == "driver" else os.getpid(), signal.SIGKILL)


def listener(event, path, count, victim, mark):
    left, busy = count, False

    def listen(happened, arguments):
        nonlocal left, busy
        if happened != event or busy or left == 0:
            return
        named = arguments[NAMED.get(event, 0)]
        if event == "open" and not (arguments[2] or 0) & WRITES:
            return
        if isinstance(named, int) or not fnmatch(os.fsdecode(named), f"*{path}"):
            return
        left -= 1
        if left == 0:
            busy = True
            try:
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            kill(victim)

    return listen


if "FAULT" in os.environ:
    sys.addaudithook(listener(**json.loads(os.environ["FAULT"])))
