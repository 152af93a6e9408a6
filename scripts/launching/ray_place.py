"""What every node of a Ray cluster has to see as the launcher's does."""

import contextlib
import os
import platform
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from common.files import make_output_folder
from common.startup import REPOSITORY
from scripts.launching import ray_node
from scripts.launching.demand import Demand
from scripts.launching.ray_node import Place


def place_of(demand: Demand) -> Place:
    """What every node has to see as it is here, for what is asked."""
    reads = [os.path.abspath(path) for path in demand.reads]
    names = [name for name in _required() if ray_node.installed(name) is not None]
    packages = {name: ray_node.installed(name) or "" for name in (*names, "ray")}
    return Place(
        repository=str(REPOSITORY),
        sources=ray_node.source_digests(str(REPOSITORY)),
        cwd=os.getcwd(),
        output=os.path.abspath(demand.output),
        identity=identity_of(demand.output),
        folders={path: ray_node.listing(path) for path in reads if os.path.isdir(path)},
        files={path: os.path.getsize(path) for path in reads if os.path.isfile(path)},
        packages={"python": platform.python_version(), **packages},
        environment={name: value for name, value in os.environ.items() if name.startswith(ray_node.PASSED_ON)},
    )


def identity_of(output: Path) -> str:
    """What a file in a folder says, which is made once: whoever reads the same there sees the same folder."""
    make_output_folder(output)
    path = output / ray_node.IDENTITY_FILE
    with contextlib.suppress(FileExistsError), open(path, "x", encoding="utf-8") as handle:
        handle.write(secrets.token_hex(16))
    return path.read_text(encoding="utf-8")


def _required() -> Iterator[str]:
    """Names of the packages that runs need."""
    for line in (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines():
        name = re.match(r"[\w.-]*", line).group()  # type: ignore[union-attr]  # it always matches
        if name and not name.startswith("pytest"):
            yield name
