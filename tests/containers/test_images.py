"""What the images hold, and what they do not."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from ops.docker.composition import MODELS, SERVICES
from ops.docker.engine import image_bytes
from ops.docker.images import DEFAULT_BASE
from ops.local.layout import CHECKOUT
from tests.chaos.bars import Measured
from tests.containers.conftest import Started
from tests.containers.stack import TAG, WORKERS, Stack, docker, python_in

pytestmark = [pytest.mark.containers, pytest.mark.slow]

GATEWAY_BYTES = 250_000_000
EVERY = (*(service.name for service in SERVICES), MODELS)
_UNWANTED = "gcc g++ cc c++ clang cpp ld as make cmake nvcc"


def image(name: str) -> str:
    """An image's full name."""
    return f"torch-isolation-mesh/{name}:{TAG}"


@pytest.fixture(scope="module", autouse=True)
def _built(started: Started) -> None:
    """The images exist."""


def test_the_gateways_image_is_small_and_holds_no_torch(measured: Measured) -> None:
    """Torch is not there to be imported, nor is anything that would need it, and the image is what a gateway weighs."""
    size, base = image_bytes(image("gateway")), image_bytes(DEFAULT_BASE)
    assert size is not None
    assert base is not None
    measured("image gateway, beyond its base", (size - base) / 1e6, "MB")
    assert size - base <= GATEWAY_BYTES
    found = python_in(
        "gateway",
        "from importlib.util import find_spec as f; "
        "print([n for n in ('torch', 'transformers', 'onnxruntime', 'numpy', 'inference') if f(n)])",
    )
    assert found == "[]"


def test_the_llm_worker_is_free_of_torch_and_its_engine_is_not() -> None:
    """The worker's Python has no torch; its engine's, beside it in the container, has."""
    assert python_in("llm-services", "from importlib.util import find_spec; print(find_spec('torch'))") == "None"
    engine = docker(
        "exec", "llm-services", "sh", "-c", '"$LLM_ENGINE_PYTHON" -c "import torch; print(torch.ones(2).sum())"'
    )
    assert engine.strip() == "tensor(2.)"


@pytest.mark.parametrize("name", EVERY)
def test_no_image_holds_a_compiler_or_a_cache(name: str) -> None:
    """Nothing that compiles, and nothing that pip or apt has kept, is left in what is shipped."""
    script = (
        f"for each in {_UNWANTED}; do command -v $each; done; "
        "ls -A /root/.cache /var/cache/apt/archives 2>/dev/null | grep -v -e ':$' -e '^$' -e '^lock$' -e '^partial$'; "
        "find /opt/mesh -maxdepth 5 -name pip -type d; true"
    )
    assert (
        docker("run", "--rm", "--user", "0", "--network", "none", "--entrypoint", "sh", image(name), "-c", script) == ""
    )


@pytest.mark.parametrize("name", EVERY)
def test_every_image_runs_as_a_user_without_rights(name: str) -> None:
    """The user is a number that is not root's, as Kubernetes checks it, and owns nothing of the code."""
    facts = json.loads(docker("image", "inspect", image(name)))[0]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", facts["Config"]["User"])
    script = "find / -xdev -user mesh -not -path '/proc/*' -not -path /models 2>/dev/null; true"
    assert docker("run", "--rm", "--network", "none", "--entrypoint", "sh", image(name), "-c", script) == ""


@pytest.mark.parametrize("name", [service.name for service in SERVICES])
def test_every_container_is_locked_in(name: str) -> None:
    """A read-only file system, no capabilities, no new privileges, bounds on memory and processes, a health probe."""
    facts = json.loads(docker("container", "inspect", name))[0]
    limits = facts["HostConfig"]
    assert limits["ReadonlyRootfs"]
    assert limits["CapDrop"] == ["ALL"]
    assert limits["SecurityOpt"] == ["no-new-privileges:true"]
    assert limits["Memory"] > 0
    assert limits["MemorySwap"] == limits["Memory"]
    assert limits["PidsLimit"] > 0
    assert limits["RestartPolicy"]["Name"] == "unless-stopped"
    assert facts["Config"]["Healthcheck"]["Test"][:4] == ["CMD", "python", "-m", "mesh.healthcheck"]
    assert python_in(name, "open('/app/new', 'w')", check=False) == ""
    assert "rights" in python_in(name, "import os; os.path.exists('/app/new') or print('no rights')")
    status = python_in(name, "print(open('/proc/self/status').read())")
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)


@pytest.mark.parametrize("name", EVERY)
def test_nothing_unknown_runs_at_pythons_start(name: str) -> None:
    """No .pth file, sitecustomize or usercustomize in an image's environments but setuptools' own."""
    script = "find /opt/mesh -name '*.pth' -o -name sitecustomize.py -o -name usercustomize.py"
    found = docker("run", "--rm", "--network", "none", "--entrypoint", "sh", image(name), "-c", script).split()
    assert [path for path in found if Path(path).name != "distutils-precedence.pth"] == []


@pytest.mark.parametrize(
    ("name", "holds", "lacks"),
    [("gateway", {"fastapi"}, {"torch"}), ("llm-services", {"aiohttp", "torch", "transformers"}, set())],
)
def test_a_bill_of_materials_lists_all_that_an_image_holds(
    tmp_path: Path, name: str, holds: set[str], lacks: set[str]
) -> None:
    """Of each environment in it, the engine's beside the worker's, and of Debian."""
    made = subprocess.run(
        [str(CHECKOUT / "scripts" / "sbom.sh"), "--image", image(name)],
        env={**os.environ, "MESH_HOME": str(tmp_path)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    listed = {each["purl"].split("@")[0] for each in json.loads(Path(made.stdout.strip()).read_text())["components"]}
    assert holds <= {each.removeprefix("pkg:pypi/") for each in listed}
    assert not lacks & {each.removeprefix("pkg:pypi/") for each in listed}
    assert "pkg:deb/debian/libc6" in listed


def test_what_the_workers_share_lies_on_the_disk_once() -> None:
    """All images for workers are built on the same layers, the environment with torch among them."""
    layers = [json.loads(docker("image", "inspect", image(name)))[0]["RootFS"]["Layers"] for name in (*WORKERS, MODELS)]
    shared = set(layers[0]).intersection(*layers[1:])
    sizes = [len(each) - len(shared) for each in layers]
    assert len(shared) >= 3, "the base, the user, the environment"
    assert max(sizes) <= 4, "an environment was copied twice"


def test_the_models_volume_is_for_reading_alone(stack: Stack) -> None:
    """Workers read what was prepared, and none of them can change what the others load."""
    for name in WORKERS:
        mounts = json.loads(docker("container", "inspect", name))[0]["Mounts"]
        models = next(each for each in mounts if each["Destination"] == "/models")
        assert not models["RW"], name
        assert "Read-only" in python_in(
            name, "import contextlib\ntry: open('/models/x', 'w')\nexcept OSError as error: print(error.strerror)"
        )
    assert stack.url


def test_the_start_prints_every_images_size(started: Started) -> None:
    """An operator sees what was built, and what it weighs."""
    lines = started.words.splitlines()
    assert any("BEYOND ITS BASE" in line for line in lines)
    for name in EVERY:
        assert any(re.match(rf"\s+{name}\s+[\d,]+ MB\s", line) for line in lines), name
