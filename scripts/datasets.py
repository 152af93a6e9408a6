"""What is there of the data sets: layouts, images by domain and class, damaged files, copies; looks only.

python scripts/datasets.py --root data                          every set under data/
python scripts/datasets.py --root data pacs vlcs --classes      two of them, with the images of each class
python scripts/datasets.py path/to/folder                       your own images, <folder>/<domain>/<class>/<image>
"""

import _repository

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from common.errors import UserError, command
from common.files import atomic_write

if TYPE_CHECKING:
    from PIL import Image

    from datasets.base import DomainGeneralizationDataset
    from datasets.survey import Survey

EXAMPLES = 5  # files named for each kind of finding; --json names all


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="sets, or folders of domains (default: all known sets)")
    parser.add_argument("--root", default="data", help="the folder that holds the sets (default: %(default)s)")
    parser.add_argument("--folder", action="append", default=[], help="a folder of domains; may be repeated")
    parser.add_argument("--classes", action="store_true", help="also the images of each class in each domain")
    parser.add_argument("--fast", action="store_true", help="do not decode the images")
    parser.add_argument("--json", metavar="FILE", help="write everything that was found there")
    parser.add_argument("--thumbnails", metavar="FILE", help="draw samples of each domain and class there (.png, .jpg)")
    parser.add_argument("--per-cell", type=positive, default=2, help="samples of a class in a domain (%(default)s)")
    parser.add_argument("--columns", type=positive, default=12, help="at most so many classes (%(default)s)")
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def wanted_sets(args: argparse.Namespace) -> "Iterator[tuple[str, type[DomainGeneralizationDataset], Path]]":
    """(name, registered class, root) of each set to look at; a folder goes by its own name.

    Raises:
        UserError: an unknown name; the root is missing; a folder is none of domains.
    """
    from datasets.known import FOLDER, dataset_class, dataset_config, folder_config, known_names
    from datasets.layouts import check_root

    names = args.names
    if not names and not args.folder:
        names = known_names()
    chosen = [dataset_config(name, args.root) for name in names] + [folder_config(folder) for folder in args.folder]
    for config, place in chosen:
        dataset, root = dataset_class(config), check_root(place)
        dataset.list_domains(root)  # of a folder: are there any?
        yield root.name if config.stem == FOLDER else config.stem, dataset, root


# --- tables ---


def summary_table(surveys: "Sequence[Survey]", missing: Iterable[str], refused: Iterable[str]) -> str:
    """One row for each set, also for those that were not found or are in disorder."""
    rows = []
    for survey in surveys:
        n_images = sum(map(survey.count, survey.domains))
        across = sum(len(set(survey.domains_of(group))) > 1 for group in survey.duplicates)
        rows.append(
            [
                survey.name,
                survey.location.layout.name,
                survey.location.images_dir,
                of(len(survey.images), len(survey.domains)),
                of(survey.classes_of(*survey.domains), n_classes(survey)),
                f"{n_images:,}",
                f"{sum(survey.dataset.image_counts.values()):,}" if survey.dataset.image_counts else "-",
                "-" if survey.unreadable is None else f"{len(survey.unreadable):,}",
                f"{len(survey.duplicates):,}" + (f" ({across:,} across domains)" if across else ""),
            ]
        )
    rows += [[name, "unclear, see below", *"-------"] for name in refused]
    rows += [[name, "not found", *"-------"] for name in missing]
    header = ["set", "layout", "folder", "domains", "classes", "images", "known", "unreadable", "duplicates"]
    return table(rows, header, "llllrrrrr")


def n_classes(survey: "Survey") -> int:
    """Number of classes of the full set; of an own folder, those that it has."""
    return survey.dataset.n_classes or len(survey.classes)


def domain_table(survey: "Survey") -> str:
    """Images of each domain against the known count, and how many of them are damaged or copies."""
    unreadable = survey.domains_of(survey.unreadable or ())
    within, across = dict.fromkeys(survey.domains, 0), dict.fromkeys(survey.domains, 0)
    for group in survey.duplicates:
        domains = survey.domains_of(group)
        for domain in set(domains):
            within[domain] += domains.count(domain) if domains.count(domain) > 1 else 0
            across[domain] += domains.count(domain) if len(set(domains)) > 1 else 0

    rows = []
    for domain in survey.domains:
        known = survey.known(domain)
        rows.append(
            [
                domain,
                of(survey.classes_of(domain), n_classes(survey)),
                survey.count(domain),
                "-" if known is None else known,
                "-" if survey.unreadable is None else unreadable.count(domain),
                within[domain],
                across[domain],
            ]
        )
    totals = [sum(cells) if "-" not in cells else "-" for cells in list(zip(*rows, strict=True))[2:]]
    rows.append(["all", "", *totals])
    header = ["domain", "classes", "images", "known", "unreadable", "twice in it", "also in another"]
    return table(rows, header, "lrrrrrr")


def class_table(survey: "Survey") -> str:
    """Images of each class in each domain."""
    rows: list[list[Any]] = [
        [name, *(survey.count(domain, name) for domain in survey.domains)]
        for name in sorted({*survey.classes, *set().union(*survey.images.values())})
    ]
    rows = [[*row, sum(row[1:])] for row in rows]
    return table(rows, ["class", *survey.domains, "all"], "l" + "r" * (len(survey.domains) + 1))


def table(rows: Iterable[Iterable[object]], header: Sequence[str], align: str) -> str:
    """A table as the other scripts print it; numbers get separators."""
    texts = [[f"{cell:,}" if isinstance(cell, int) else printable(cell) for cell in row] for row in rows]
    sides = ["left" if letter == "l" else "right" for letter in align]
    return tabulate(texts, [*map(printable, header)], tablefmt="github", colalign=sides, disable_numparse=True)


def of(n: int, total: int) -> str:
    """ "4", or "3 of 4"."""
    return f"{n}" if n == total else f"{n} of {total}"


def printable(text: object) -> str:
    """Text that any terminal takes; file names may be any bytes."""
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def findings(survey: "Survey") -> list[str]:
    """Lines on what is not as it should be, with examples."""
    lines = [f"- {note}" for note in survey.notes]
    for domain, unused in survey.unused.items():
        for reason, paths in sorted(unused.items()):
            place = f"{domain}: not used, " if domain else "not used, "
            lines += with_examples(place + reason, paths)
    lines += with_examples(
        "unreadable images", [f"{path}: {reason}" for path, reason in (survey.unreadable or {}).items()]
    )
    across = [group for group in survey.duplicates if len(set(survey.domains_of(group))) > 1]
    lines += with_examples("images that several domains have", map(" = ".join, across))
    lines += with_examples(
        "images that one domain has more than once", map(" = ".join, survey.duplicates[len(across) :])
    )
    return [printable(line) for line in lines]


def with_examples(title: str, items: Iterable[str]) -> Iterator[str]:
    """A line with the number of items, and the first few of them; nothing if there are none."""
    items = list(items)
    if items:
        yield f"- {title}: {len(items):,}"
        yield from (f"    {item}" for item in items[:EXAMPLES])
        if len(items) > EXAMPLES:
            yield f"    and {len(items) - EXAMPLES:,} more (--json FILE lists them)"


def how_to_get(name: str, root: str) -> str:
    """The command that fetches a set."""
    from datasets.download.offer import download_command
    from datasets.known import EMBEDDED_DATASET

    if name == EMBEDDED_DATASET:
        return f"DATA={shlex.quote(str(root))} bash scripts/spg/main.sh  # draws it on first use"
    return download_command(name, root)


# --- files ---


def as_plain_data(survey: "Survey") -> dict[str, Any]:
    """All about a set as JSON has it."""
    return {
        "dataset": survey.dataset.__name__,
        "layout": survey.location.layout.name,
        "folder": str(survey.location.images_dir),
        "classes": survey.classes,
        "domains": {
            domain: {
                "images": survey.count(domain),
                "known": survey.known(domain),
                "classes": {name: len(paths) for name, paths in survey.images.get(domain, {}).items()},
            }
            for domain in survey.domains
        },
        "unused": survey.unused,
        "unreadable": survey.unreadable,
        "duplicates": survey.duplicates,
        "notes": survey.notes,
    }


def write_json(
    path: str, surveys: "Sequence[Survey]", missing: Iterable[str], refused: dict[str, str], root: str
) -> None:
    """Write what was found to a file."""
    content = {
        "sets": {survey.name: as_plain_data(survey) for survey in surveys},
        "unclear": refused,
        "not_found": {name: how_to_get(name, root) for name in missing},
    }
    with atomic_write(path, "w") as handle:
        json.dump(content, handle, indent=1)
        handle.write("\n")


def write_sheet(path: str, surveys: "Sequence[Survey]", per_cell: int, columns: int) -> "Image.Image":
    """Draw samples of the sets into a file, whose kind its extension tells."""
    from PIL import Image

    from datasets.thumbnails import draw_sheet

    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    if kind not in ("PNG", "JPEG"):
        raise UserError(f"--thumbnails {path}: name a .png or .jpg file.")
    if not surveys:
        raise UserError(f"None of the sets was found, so there is nothing to draw into {path}.")
    sheet = draw_sheet(surveys, per_cell, columns)
    with atomic_write(path) as handle:
        sheet.save(handle, format=kind)
    return sheet


# --- the whole ---


def report(args: argparse.Namespace) -> None:
    """Look at the sets and print the tables.

    Raises:
        UserError: an unknown name, a missing root, a process that was killed, a file that cannot be written.
    """
    from datasets.layouts import SetNotFound
    from datasets.survey import examine, look

    surveys: list[Survey] = []
    missing: dict[str, list[str]] = {}
    refused: dict[str, str] = {}
    for name, dataset, root in list(wanted_sets(args)):
        try:
            survey = look(name, dataset, root)
        except SetNotFound as error:
            missing[name] = error.incomplete
            continue
        except UserError as error:
            refused[name] = str(error)
            continue
        examine(survey, decode=not args.fast)
        surveys.append(survey)

    print(summary_table(surveys, missing, refused))
    for survey in surveys:
        location = survey.location
        print(f"\n{survey.name}: {printable(location.images_dir)} ({location.layout.name} layout)\n")
        print(domain_table(survey))
        if args.classes:
            print(f"\n{class_table(survey)}")
        if found := findings(survey):
            print("", *found, sep="\n")
    for name, message in refused.items():
        print(f"\n{name}: {printable(message)}")
    if missing:
        print(f"\nNot found under {args.root}:")
    for name, incomplete in missing.items():
        there = f"  # {', '.join(incomplete)} is there, but has no domain in it: half-extracted?" if incomplete else ""
        print(f"  {name}: {how_to_get(name, args.root)}{there}")
    sheet = None
    try:
        if args.json:
            write_json(args.json, surveys, missing, refused, args.root)
        if args.thumbnails:
            sheet = write_sheet(args.thumbnails, surveys, args.per_cell, args.columns)
    except OSError as error:
        raise UserError(f"Cannot write {error.filename or args.thumbnails}: {error.strerror or error}.") from error
    if sheet:
        print(f"\nSamples: {args.thumbnails} ({sheet.width} x {sheet.height} pixels)")


@command
def main(argv: list[str] | None = None) -> None:
    """Exit code 0, or 1 with one message."""
    args = parse_args(argv)
    report(args)


if __name__ == "__main__":
    sys.exit(main())
