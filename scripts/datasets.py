"""Count the images of data sets, find damaged files and copies, draw samples.

python scripts/datasets.py --root data                          every known set under data/
python scripts/datasets.py --root data pacs vlcs --classes      two of them, with the images of each class
python scripts/datasets.py path/to/folder                       your own images, <folder>/<domain>/<class>/<image>
"""

import _repository

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from common.errors import UserError, command, join_truncated

if TYPE_CHECKING:
    import pandas as pd


class FoundSet(NamedTuple):
    """A data set on disk. Its images have the columns domain, class and path; known counts are by domain."""

    name: str
    place: str
    domains: list[str]
    classes: list[str]
    images: "pd.DataFrame"
    known: dict[str, int]


def find_set(name: str, root: str) -> FoundSet:
    """List the images of a data set, however incomplete."""
    import pandas as pd

    from datasets.base import FOLDER, dataset_class, dataset_config
    from datasets.image_files import class_folders, images_below
    from datasets.layouts import check_root

    config, place = dataset_config(name, root)
    dataset, path = dataset_class(config), check_root(place)
    location, rows = dataset.locate(path), []
    for domain, folder in location.domain_dirs.items():
        for found in class_folders(folder, location.layout.parts, dataset.class_name):
            inside = folder / found.path
            rows += [(domain, found.classname, f"{inside}/{file}") for file in images_below(inside)]
    images = pd.DataFrame(rows, columns=["domain", "class", "path"])
    classes = sorted({*(dataset.classes or ()), *images["class"]})
    title = path.name if config.stem == FOLDER else config.stem
    place = f"{location}, {dataset.n_classes or len(classes)} classes"
    return FoundSet(title, place, dataset.list_domains(path), classes, images, dict(dataset.image_counts))


def describe(found: FoundSet, by_class: bool, fast: bool) -> str:
    """A table of one set with its domains as columns, and its damaged files and copies."""
    import pandas as pd

    images, lines = found.images, []
    rows = {"images": images, "classes": images.drop_duplicates(["domain", "class"])}
    if not fast:
        from common.content_hashes import content_hashes
        from datasets.image_files import find_unreadable

        unreadable = find_unreadable(sorted(images["path"]), "images")
        readable = images[~images["path"].isin(unreadable)].sort_values("path")
        readable["hash"] = content_hashes(list(readable["path"]))
        copies = readable[readable.duplicated("hash", keep=False)]
        rows |= {"unreadable": images[images["path"].isin(unreadable)], "copies": copies}
        if unreadable:
            lines.append(f"Unreadable: {join_truncated(unreadable.values())}")
        if len(copies):
            lines.append(f"Copies: {join_truncated(copies.groupby('hash', sort=False)['path'].agg(' = '.join))}")
    if by_class:
        rows |= dict.fromkeys(found.classes, images[:0]) | dict(iter(images.groupby("class")))
    counts = {title: part.groupby("domain").size() for title, part in rows.items()}
    table = pd.DataFrame(counts, index=found.domains).fillna(0).map("{:,.0f}".format)
    table.insert(1, "known", [f"{found.known[name]:,}" if name in found.known else "-" for name in found.domains])
    text = table.T.to_markdown(tablefmt="github", disable_numparse=True, stralign="right")
    return "\n".join([f"{found.name}: {found.place}\n", text, *lines, ""])


def draw_samples(path: str, sets: Sequence[FoundSet], at_most: int = 12) -> None:
    """Draw one image of each class and domain; rows are domains, columns are at most 12 classes."""
    from dassl.utils import read_image
    from matplotlib.figure import Figure

    rows = [(found, domain) for found in sets for domain in found.domains]
    n_columns = min(at_most, max(len(found.classes) for found in sets))
    figure = Figure(figsize=(1.5 + 1.2 * n_columns, 1.4 * len(rows)), layout="constrained")
    plain = {"xticks": [], "yticks": [], "frame_on": False}
    grid = zip(rows, figure.subplots(len(rows), n_columns, squeeze=False, subplot_kw=plain), strict=True)
    for (found, domain), axes in grid:
        axes[0].set_ylabel(f"{found.name}\n{domain}", fontsize=8)
        paths = found.images[found.images["domain"] == domain].groupby("class")["path"].agg(list)
        for axis, name in zip(axes, found.classes[:: -(-len(found.classes) // n_columns)], strict=False):
            axis.set_title(name, fontsize=8)
            try:
                axis.imshow(read_image(paths[name][len(paths[name]) // 2]))
            except Exception:  # Pillow raises OSError, SyntaxError, ... for damaged files
                axis.set_xlabel("unreadable" if name in paths else "no images", fontsize=8)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--thumbnails {path}: {error}. Name a .png, .jpg or .pdf file.") from error


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="data sets, or folders of domains (default: all known sets)")
    parser.add_argument("--root", default="data", help="folder of the data sets (default: data)")
    parser.add_argument("--classes", action="store_true", help="also count the images of each class")
    parser.add_argument("--fast", action="store_true", help="count files without reading them")
    parser.add_argument(
        "--thumbnails", metavar="FILE", help="draw a sample of each domain and class (.png, .jpg, .pdf)"
    )
    args = parser.parse_args(argv)
    from datasets.base import known_names
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
