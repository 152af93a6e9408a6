"""Folders of Hugging Face's hub by id: out of its cache, or downloaded into it; and which of their files are read."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from common.errors import UserError

CONFIG = "config.json"
OPEN_CLIP_CONFIG = "open_clip_config.json"
PREPROCESSOR = ("preprocessor_config.json", "processor_config.json")
TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt")
SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
# Weights lie in one file, or in shards that an index lists.
SHARDS = {SAFE: "model-*-of-*.safetensors", PICKLED: "pytorch_model-*-of-*.bin"}
INDEX = ".index.json"
# What is downloaded at first; pickles only where there is nothing else, and nothing that could run: no code is fetched.
FILES = [CONFIG, *PREPROCESSOR, *TOKENIZER, SAFE, SAFE + INDEX, SHARDS[SAFE]]
PICKLES = [PICKLED, PICKLED + INDEX, SHARDS[PICKLED]]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def weights_file(folder: Path) -> Path | None:
    """The file of a folder that holds its weights, or the index of their shards; None: there is neither."""
    names = (SAFE, SAFE + INDEX, PICKLED, PICKLED + INDEX)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def shards_of(index: Path) -> dict[str, Path]:
    """The files that an index lists, by the names that it gives; all in its own folder, wherever it points.

    Raises:
        ValueError: it is damaged, or no index.
    """
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        return {name: index.parent / Path(name).name for name in sorted(names)}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(repr(error)) from error


def files_of(folder: Path) -> tuple[Path, ...]:
    """The files of a folder that it is read from, or would be if they were there."""
    patterns = [*FILES, *PICKLES]
    shards = [path for pattern in patterns if "*" in pattern for path in sorted(folder.glob(pattern))]
    return (*(folder / name for name in patterns if "*" not in name), *shards)


def hub_folder(name: str) -> Path:
    """The folder of an id of Hugging Face's hub, downloaded first if it is not in the cache.

    What is in the cache whole is taken as it is, without asking the hub, and what a repository has no more of is asked
    for at the same commit, so that runs that are compared do not change their backbone midway; `hf download <id>` gets
    what is newer. Progress, resuming, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN and HF_ENDPOINT are huggingface_hub's own.

    Args:
        name: "<organisation>/<name>", or "<organisation>/<name>@<revision>".

    Raises:
        UserError: it is in neither the cache nor the hub, or may not be read.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")

    def snapshot(files: list[str], cached: bool = False, commit: str = "") -> Path:
        at = commit or revision or None
        return Path(snapshot_download(repository, revision=at, allow_patterns=files, local_files_only=cached))

    cached = None
    try:
        cached = snapshot(FILES, cached=True)
    except LocalEntryNotFoundError:
        pass  # not there, or not whole
    except HFValidationError as error:
        raise UserError(f"Backbone hf:{name}: {error}. Accepted: hf:<folder>, hf:<organisation>/<name>.") from error
    if cached is not None and _is_whole(cached):
        return cached
    try:
        # What the cache has may be all that there is; then it is the same commit that the rest is asked of.
        usable = cached is not None and (cached / CONFIG).is_file() and _has_weights(cached)
        folder = snapshot(FILES, commit=cached.name if cached is not None and usable else "")
        if weights_file(folder) is None:
            folder = snapshot(FILES + PICKLES)
        if constants.HF_HUB_OFFLINE and not _has_weights(folder):
            raise LocalEntryNotFoundError("some of its files are not in the cache")
        return folder
    except Exception as error:  # a network that breaks ends in any kind of exception
        if cached is not None and (cached / CONFIG).is_file() and _has_weights(cached):
            return cached  # all that is needed, though the hub may have more beside it
        place = f"{constants.ENDPOINT} and the cache {constants.HF_HUB_CACHE}"
        raise UserError(f"Backbone hf:{name}: {_why_not(error, name, repository, place)}") from error


def cached_file(repository: str, names: Iterable[str]) -> Path | None:
    """The first of these files that the hub's cache has of a repository; None: it has none of them."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repository, name) for name in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def offline() -> str:
    """What keeps a download from being made where HF_HUB_OFFLINE does, and its mend, behind "it"; "": it does not."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        return ""
    return (
        f"is not, or not whole, in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to download it. "
        "Unset HF_HUB_OFFLINE and run the command again, or set HF_HOME to where it is"
    )


def _is_whole(folder: Path) -> bool:
    """Whether a folder of the cache has all that is read of one."""
    there = {path.name for path in folder.iterdir()}
    return _has_weights(folder) and all(there.intersection(names) for names in (PREPROCESSOR, TOKENIZER, (CONFIG,)))


def _has_weights(folder: Path) -> bool:
    """Whether a folder has its weights, all shards of them."""
    path = weights_file(folder)
    if path is None or not path.name.endswith(INDEX):
        return path is not None
    try:
        return all(shard.is_file() for shard in shards_of(path).values())
    except ValueError:
        return False


def _why_not(error: Exception, name: str, repository: str, place: str) -> str:
    """What kept a download from being made, and what mends it."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"{constants.ENDPOINT}/{repository}"
    by_hand = (
        f"Or get its folder on a machine that can (hf download {repository} --local-dir <folder>) and name that: "
        "hf:<folder>."
    )
    if isinstance(error, GatedRepoError):
        return (
            f"its owners want to be asked first. Ask on {page}, then set HF_TOKEN to a token of your account "
            f"(or run: hf auth login). {by_hand}"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"it is neither a folder here nor at {place}. Check the spelling; if it is private, set HF_TOKEN to a "
            "token that may read it (or run: hf auth login)."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repository} has no revision {name.partition('@')[2]!r}; see {page}/commits, or leave it out."
    if told := offline():
        return f"it {told}. {by_hand}"
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__).removeprefix("Got: ")
    return (
        f"it is not, or not whole, in the cache {constants.HF_HUB_CACHE}, and could not be downloaded from "
        f"{constants.ENDPOINT} ({reason[:300]}). Check the network and run the command again: files that came to "
        f"their end are kept. {by_hand}"
    )
