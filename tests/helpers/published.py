"""Numbers that published code computed: tests/reference/README.md says how."""

import json

from helpers.paths import REFERENCE

SGM, DIFFUSERS = (
    json.loads((REFERENCE / f"{name}_reference.json").read_text()) for name in ("sgm", "diffusers")
)
