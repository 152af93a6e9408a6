"""Classify images by a trained run of any trainer: the most probable class names, with probabilities.

python predict.py --model-dir output/pacs/SPG/ViT-B16/pacs/sketch/seed1 photo.jpg folder/
python predict.py --model-dir <run> --classnames "cat,dog,guinea pig" --format json --out found.json folder/
python predict.py --model-dir <CoOp's folder> --trainer CoOp --backbone ViT-B/16 --classnames @names.txt photo.jpg
"""

import argparse
import contextlib
import csv
import io
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.startup import escape_unprintable, prepare_imports, start_command

if __name__ == "__main__":
    start_command()  # before any package is imported

from common.errors import UserError, command
from common.files import atomic_write, read_text


def __getattr__(name: str) -> Any:
    """`from predict import Predictor` works, and nothing heavy is imported before it is asked for."""
    if name != "Predictor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    prepare_imports()
    from trainers.predictor import Predictor

    return Predictor


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", help="images, or folders of images (searched at all depths)")
    parser.add_argument("--model-dir", required=True, help="folder of a trained run")
    parser.add_argument("--list", default="", metavar="FILE", help="a text file that names an image on each line")
    parser.add_argument(
        "--classnames", type=read_classnames, help='other class names: "a,b,c", or @FILE with one on each line'
    )
    parser.add_argument("--top-k", type=int, default=5, help="classes for each image (default: 5)")
    parser.add_argument(
        "--format", default="table", choices=("table", "json", "csv"), help="of the output (default: table)"
    )
    parser.add_argument("--out", default="", metavar="FILE", help="write the output there instead of printing it")
    parser.add_argument("--backbone", default="", help="where CLIP's weights are now, if not where they were")
    parser.add_argument("--trainer", default="", help="of a folder of checkpoints alone, as CoOp's: the method")
    parser.add_argument("--config-file", default="", help="of such a folder: its config, if not the method's default")
    parser.add_argument("--seed", type=int, default=None, help="of the generated prompts' noise (default: the run's)")
    parser.add_argument("--n-prompts", type=int, default=None, help="prompts for each image (default: the run's)")
    parser.add_argument("--batch-size", type=int, default=100, help="images at a time (default: 100)")
    parser.add_argument("--workers", type=int, default=4, help="processes that decode images (default: 4)")
    return parser.parse_args(argv)


def find_images(words: Sequence[str], list_file: str) -> list[str]:
    """The images of a command line, in its order; a folder's images are sorted. Raises UserError if there are none."""
    from datasets.image_files import IMAGE_EXTENSIONS, images_below

    words = list(words)
    if list_file:  # file names may be any bytes
        words += read_lines("--list", list_file, "surrogateescape")
    if not words:
        raise UserError("No images are named: give files or folders, or --list FILE.")
    found = []
    for word in words:
        is_folder = Path(word).is_dir()
        # A missing file is reported with the images that cannot be read.
        inside = [str(Path(word) / name) for name in images_below(word)] if is_folder else [word]
        if not inside:
            raise UserError(f"There are no images in the folder {word} ({', '.join(IMAGE_EXTENSIONS)}).")
        found += inside
    return found


def read_classnames(text: str) -> list[str]:
    return read_lines("--classnames", text[1:]) if text[:1] == "@" else [name.strip() for name in text.split(",")]


def read_lines(flag: str, path: str, errors: str = "strict") -> list[str]:
    """The lines of a text file that are not empty; raises UserError if it cannot be read."""
    try:
        lines = read_text(path, errors).splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {path} cannot be read: {error}.") from error
    return [line.strip() for line in lines if line.strip()]


def formatted(rows: Sequence[tuple[str, list[tuple[str, float]]]], output_format: str) -> str:
    """Rows of (path, list of (class name, probability)) as text."""
    if output_format == "json":
        content = [
            {"image": path, "predictions": [{"class": c, "probability": round(p, 6)} for c, p in top]}
            for path, top in rows
        ]
        return json.dumps(content, indent=2) + "\n"
    if output_format == "csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(("image", "rank", "class", "probability"))
        for path, top in rows:
            writer.writerows((path, rank, name, f"{p:.6f}") for rank, (name, p) in enumerate(top, start=1))
        return text.getvalue()
    from tabulate import tabulate

    ranks = range(1, max((len(top) for _, top in rows), default=0) + 1)
    cells = [[path, *(f"{name} {100 * p:.1f}%" for name, p in top)] for path, top in rows]
    return tabulate(cells, ["image", *ranks], disable_numparse=True) + "\n" if rows else ""


@command
def main(argv: list[str] | None = None) -> int:
    """Exit code 0, 1 with messages (one, or one for each image that cannot be read), or 130 if interrupted."""
    args = parse_args(argv)
    if args.top_k < 1 or args.batch_size < 1 or args.workers < 0:
        raise UserError("--top-k and --batch-size are numbers from 1, --workers from 0.")
    prepare_imports()
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
    images = find_images(args.images, args.list)
    from datasets.image_files import warn_of_orientation
    from trainers.predictor import Predictor

    with contextlib.redirect_stdout(sys.stderr):  # stdout has the predictions
        warn_of_orientation(images, "some images", at_most=1000)
    options = {name: getattr(args, name) for name in ("seed", "n_prompts", "batch_size", "trainer", "config_file")}
    workers = args.workers if len(images) > args.batch_size else 0
    predictor = Predictor(args.model_dir, args.classnames, args.backbone or None, workers=workers, **options)
    found, unreadable = predictor.predict_readable(images, args.top_k)
    text = formatted([(images[i], found[i]) for i in sorted(found)], args.format)
    if args.out:
        with atomic_write(args.out) as handle:
            handle.write(text.encode("utf-8", "surrogateescape"))
    else:
        escape_unprintable(sys.stdout, "utf-8", "surrogateescape")
        print(text, end="", flush=True)
    if unreadable:
        title = f"Error: {len(unreadable)} of {len(images)} images cannot be read:"
        print(title, *unreadable.values(), sep="\n  ", file=sys.stderr)
    return int(bool(unreadable))


if __name__ == "__main__":
    sys.exit(main())
