"""Count the images of data sets against the known numbers, find damaged files and copies, draw samples.

python scripts/datasets.py --root data                          every known set under data/
python scripts/datasets.py --root data pacs vlcs --classes      two of them, with the images of each class
python scripts/datasets.py path/to/folder                       your own images, <folder>/<domain>/<class>/<image>
"""

import _repository

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from tabulate import tabulate

from common.errors import UserError, command, join_truncated


class Found(NamedTuple):
    """A set on disk: its folder, the paths of its images by domain and class, and the counts of the full set."""

    name: str
    place: str
    images: dict[str, dict[str, list[str]]]
    classes: list[str]
    n_classes: int
    n_images: dict[str, int]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="sets, or folders of domains (default: all known sets)")
    parser.add_argument("--root", default="data", help="the folder that holds the sets (default: %(default)s)")
    parser.add_argument("--classes", action="store_true", help="also count the images of each class")
    parser.add_argument("--fast", action="store_true", help="only count, without reading the images")
    parser.add_argument("--thumbnails", metavar="FILE", help="draw a sample of each domain and class (.png, .jpg)")
    return parser.parse_args(argv)


def find_set(name: str, root: str) -> Found:
    """List the images of a set, however incomplete."""
    from datasets.contents import class_folders, list_images
    from datasets.known import FOLDER, dataset_class, dataset_config
    from datasets.layouts import check_root

    config, place = dataset_config(name, root)
    dataset, path = dataset_class(config), check_root(place)
    location = dataset.locate(path)
    images: dict[str, dict[str, list[str]]] = {domain: defaultdict(list) for domain in dataset.list_domains(path)}
    for domain, folder in location.domain_dirs.items():
        folders = class_folders(folder, location.layout.parts, dataset.class_name)
        for class_folder, names in list_images(folder, folders).items():
            images[domain][class_folder.classname] += [f"{folder}/{class_folder.path}/{name}" for name in names]
    classes = sorted({*(dataset.classes or ()), *(name for by_class in images.values() for name in by_class)})
    label = path.name if config.stem == FOLDER else config.stem
    return Found(label, str(location), images, classes, dataset.n_classes or len(classes), dict(dataset.image_counts))


def describe(found: Found, by_class: bool, fast: bool) -> str:
    """A table of one set with its domains as columns, and its damaged files and copies."""
    paths = {domain: set().union(*images.values()) for domain, images in found.images.items()}
    rows: dict[str, list[object]] = {
        "images": [len(there) for there in paths.values()],
        "known": [found.n_images.get(domain, "-") for domain in paths],
        "classes": [sum(map(bool, images.values())) for images in found.images.values()],
    }
    unreadable, copies = ({}, []) if fast else read_images(sorted(set().union(*paths.values())))
    if not fast:
        copied = {path for group in copies for path in group}
        rows["unreadable"] = [len(unreadable.keys() & there) for there in paths.values()]
        rows["copies"] = [len(copied & there) for there in paths.values()]
    if by_class:
        rows |= {name: [len(images.get(name, ())) for images in found.images.values()] for name in found.classes}
    texts = [[title, *(f"{n:,}" if isinstance(n, int) else n for n in counts)] for title, counts in rows.items()]
    text = f"{found.name}: {found.place}, {found.n_classes} classes\n\n"
    text += tabulate(texts, ["", *paths], tablefmt="github", disable_numparse=True, stralign="right") + "\n"
    if unreadable:
        text += f"Unreadable: {join_truncated(f'{path} ({reason})' for path, reason in unreadable.items())}\n"
    if copies:
        text += f"Copies: {join_truncated(' = '.join(group) for group in copies)}\n"
    return text


def read_images(paths: Sequence[str]) -> tuple[dict[str, str], list[list[str]]]:
    """Reasons of images that cannot be decoded, and groups of the other images with the same content."""
    from common.content_hashes import content_hashes
    from datasets.contents import find_unreadable

    unreadable = find_unreadable(paths, "images")
    readable = [path for path in paths if path not in unreadable]
    groups = defaultdict(list)
    for path, content in zip(readable, content_hashes(readable), strict=True):
        groups[content].append(path)
    return unreadable, [group for group in groups.values() if len(group) > 1]


def draw_samples(path: str, sets: Sequence[Found], at_most: int = 12) -> None:
    """Draw one image of each class and domain; rows are domains, columns at most so many classes."""
    from dassl.utils import read_image
    from matplotlib.figure import Figure

    rows = [(found, domain) for found in sets for domain in found.images]
    n_columns = min(at_most, max(len(found.classes) for found in sets))
    figure = Figure(figsize=(1.5 + 1.2 * n_columns, 1.4 * len(rows)), layout="constrained")
    plain = {"xticks": [], "yticks": [], "frame_on": False}
    grid = zip(rows, figure.subplots(len(rows), n_columns, squeeze=False, subplot_kw=plain), strict=True)
    for (found, domain), axes in grid:
        axes[0].set_ylabel(f"{found.name}\n{domain}", fontsize=8)
        for axis, name in zip(axes, found.classes[:: -(-len(found.classes) // n_columns)], strict=False):
            axis.set_title(name, fontsize=8)
            paths = found.images[domain].get(name, [])
            try:
                axis.imshow(read_image(paths[len(paths) // 2]))
            except Exception:  # Pillow raises OSError, SyntaxError, ... of damaged files
                axis.set_xlabel("unreadable" if paths else "no images", fontsize=8)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--thumbnails {path}: {error}. Name a .png, .jpg or .pdf file.") from error


@command
def main(argv: list[str] | None = None) -> None:
    """Exit code 0, or 1 with one message."""
    args = parse_args(argv)
    from datasets.known import known_names
    from datasets.layouts import SetNotFound

    sets, missing = [], []
    for name in args.names or known_names():
        try:
            sets.append(find_set(name, args.root))
        except SetNotFound as error:
            missing.append(str(error) if args.names else f"{name}: not found")
    texts = [*(describe(found, args.classes, args.fast) for found in sets), *missing]
    if missing:
        texts.append(f"To download a set: python scripts/download.py NAME --root {args.root}")
    print("\n".join(texts).encode("utf-8", "replace").decode())  # file names may be any bytes
    if args.thumbnails and sets:
        draw_samples(args.thumbnails, sets)


if __name__ == "__main__":
    sys.exit(main())
