"""What the Ray engine does on a node. It travels there by value, so that a node without the repository can say so."""

import hashlib
import os
import platform
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scripts.launching.plan import Task

ROOMS = ("common", "compat", "configs", "datasets", "scripts", "trainers")
SUFFIXES = (".py", ".yaml")
# How threads are counted and wait, which Dassl is used, where weights are: as for the launcher, not as Ray has it.
PASSED_ON = ("OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "SPG_", "HF_", "XDG_CACHE_")
MOST_NAMED = 3
IDENTITY_FILE = ".output_id"


@dataclass(frozen=True)
class Place:
    """What a node has to see, as it is where the launcher runs.

    Attributes:
        repository: its folder.
        sources: digests of the files there that a run is made of, by their paths in it.
        cwd: the folder that the launcher was started in, which relative paths begin at.
        output: folder of all output, a whole path.
        identity: what IDENTITY_FILE there says.
        folders: what lies in each other folder that runs read, by its whole path.
        files: sizes of other files that runs read, by their whole paths.
        packages: versions, by the names that they are distributed under.
        environment: variables that are passed on.
    """

    repository: str
    sources: Mapping[str, str]
    cwd: str
    output: str
    identity: str
    folders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def lacking(self) -> list[str]:
        """What the machine that this is called on has not, or not alike, in words: "its packages lack torch"."""
        return [*self._other_sources(), *self._other_packages(), *self._other_files()]

    def _other_sources(self) -> Iterator[str]:
        found = source_digests(self.repository)
        others = sorted({path for path, _ in found.items() ^ self.sources.items()})
        if not found:
            yield f"there is no repository in {self.repository}"
        elif others:
            yield f"{self.repository} is at another revision: {_some(others)}"

    def _other_packages(self) -> Iterator[str]:
        python = self.packages.get("python")
        if python and python != platform.python_version():
            yield f"Python is {platform.python_version()} (here {python})"
        found = {name: installed(name) for name in self.packages if name != "python"}
        if missing := [name for name, version in found.items() if version is None]:
            yield f"{sys.executable} lacks the packages {_some(missing)}"
        for name in ("torch", "ray"):  # others may differ by what they are tested to
            if found.get(name) and found[name] != self.packages[name]:
                yield f"{name} is {found[name]} (here {self.packages[name]})"

    def _other_files(self) -> Iterator[str]:
        identity = Path(self.output, IDENTITY_FILE)
        if not identity.is_file() or identity.read_text(encoding="utf-8") != self.identity:
            yield f"{self.output} (OUTPUT) is not the folder that it is here"
        elif not os.access(self.output, os.W_OK):
            yield f"{self.output} (OUTPUT) cannot be written"
        if not os.path.isdir(self.cwd):
            yield f"there is no folder {self.cwd}, which the launcher was started in"
        for folder, names in self.folders.items():
            if not os.path.isdir(folder):
                yield f"there is no folder {folder} (data)"
            elif missing := sorted({*names} - {*listing(folder)}):  # runs may have added some
                yield f"{folder} (data) lacks {_some(missing)}"
        for path, size in self.files.items():
            if not os.path.isfile(path):
                yield f"there is no file {path}"
            elif os.path.getsize(path) != size:
                yield f"{path} is another file than here"


def look(place: Place) -> list[str]:
    """What the node that this is called on lacks."""
    return place.lacking()


def source_digests(repository: str) -> dict[str, str]:
    """Digests of the files that a run is made of, by their paths in the repository; {} where there is none."""
    root = Path(repository)
    paths = [*root.glob("*.py"), *(path for room in ROOMS for path in (root / room).rglob("*"))]
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.suffix in SUFFIXES and path.is_file()
    }


def listing(folder: str) -> tuple[str, ...]:
    """Names of what lies in a folder."""
    return tuple(sorted(os.listdir(folder)))


def installed(name: str) -> str | None:
    """Version of a package that is installed under a name; None: there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


class Host:
    """An actor that has one warm process of `scripts.launching.local` do tasks, one at a time.

    That process is its own, so it is told signals as any other, may die without this one, and ends with it.

    Args:
        place: where it is.
        on_gpu: whether it has a GPU, or a part of one.
    """

    def __init__(self, place: Place, on_gpu: bool) -> None:
        # Ray sets the number of threads, and CUDA_VISIBLE_DEVICES where it gives a GPU.
        own = {name: value for name, value in os.environ.items() if not name.startswith(PASSED_ON)}
        environment = {**own, **place.environment, **({} if on_gpu else {"CUDA_VISIBLE_DEVICES": ""})}
        os.chdir(place.cwd)
        sys.path.insert(0, place.repository)
        from scripts.launching.local import LocalEngine

        self.said: list[str] = []
        self.engine = LocalEngine(1, self.said.append, environment=environment, passes_on=True)
        self.told = 0
        self.telling = threading.Lock()  # a task is told each signal once, whichever of the two comes first

    def ready(self) -> None:
        """Return, which it does once it has begun."""

    def do(self, task: "Task") -> Iterator[Any]:
        """Do a task: None as it begins, lines that are said of it, as they come, and last its exit code and error."""
        with self.telling:
            self.engine.submit(task)
            if self.told:  # before it had begun
                self.engine.interrupt(self.told)
        yield None
        ended = None
        while ended is None:
            ended = self.engine.next_end()
            while self.said:
                yield self.said.pop(0)
        yield ended.code, ended.error

    def interrupt(self, number: int) -> None:
        """Pass a signal on to the task, which finishes its step then and ends."""
        with self.telling:
            self.told = number
            self.engine.interrupt(number)
