"""Download the published data sets into the data root, in a layout that the project reads.

    python scripts/download.py pacs vlcs --root data
    python scripts/download.py --list

The same command resumes an interrupted download. docs/datasets.md describes a download by hand.
"""

import _repository

import argparse
import sys

from common.errors import UserError, command


def list_sources(root: str) -> str:
    from tabulate import tabulate
    from tqdm import tqdm

    from datasets.download.sources import SOURCES, locate_set

    rows = []
    for name, source in SOURCES.items():
        location, missing = locate_set(source, root)
        there = str(location.images_dir) if location else "no"
        if location and missing:
            there = f"in part: {', '.join(missing)} missing"
        n_images = f"{sum(source.dataset.image_counts.values()):,}"
        for archive in source.archives:
            size = tqdm.format_sizeof(archive.about, "B") if archive.about else "?"
            rows.append([name, n_images, there, archive.name, size, archive.url])
            name = n_images = there = ""
    headers = ["name", "images", f"under {root}", "archive", "about", "from"]
    return tabulate(rows, headers, disable_numparse=True)


@command
def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 1 with one message for each set that failed, or 130 if interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help="data set as in configs/datasets/, or all")
    parser.add_argument("--root", default="data", help="folder of the data sets (default: data)")
    parser.add_argument("--list", action="store_true", help="print names, archives, sizes and addresses")
    parser.add_argument("--mirror", default="", help="folder or address of the archives")
    parser.add_argument("--archive", action="append", default=[], metavar="FILE", help="archive on disk; repeatable")
    parser.add_argument("--any-counts", action="store_true", help="accept other numbers of images than the known ones")
    args = parser.parse_args(argv)
    if not args.names and not args.list:
        parser.error("name a data set, or use --list")
    from datasets.download.install import get
    from datasets.download.sources import SOURCES, find_source

    if args.list:
        print(list_sources(args.root))
        return 0
    sources = list(dict.fromkeys(map(find_source, SOURCES if "all" in args.names else args.names)))
    if args.archive and len(sources) > 1:
        raise UserError("--archive goes with one data set at a time.")
    failed = []
    for source in sources:
        try:
            get(source, args.root, args.mirror, args.archive, args.any_counts)
        except UserError as error:
            print(f"Error: {error}", file=sys.stderr)
            failed.append(source.title)
        except KeyboardInterrupt:
            print("\nInterrupted. The same command resumes the download.", file=sys.stderr)
            return 130
    if failed and len(sources) > 1:
        print(f"Failed: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
