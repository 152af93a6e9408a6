"""How much faster than the published procedure, on this machine: one table of ratios.

Both sides compute the same, with the same threads, in single precision on the CPU; the run fails (exit code 1) if
their outputs differ by more than 1e-4. The reference is written out in scripts/benchmarks/reference.py.
"""

import _repository

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError, command
from common.files import atomic_write, is_writable

if TYPE_CHECKING:
    from clip.model import CLIP

    from scripts.benchmarks.text import TextAmounts
    from scripts.benchmarks.timing import Row

PARTS = ("text", "spg", "memory", "growth", "field", "families", "neighbours", "launching")
# The field and families take as long as all before them; beside other load nothing else is measured; launches are whole
# processes.
DEFAULT_PARTS = PARTS[:4]
FORMAT = 1


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line. Nothing heavy is imported before this, so that --help answers at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, smaller batches: 3 minutes on 2 cores")
    parser.add_argument("--json", default="", metavar="PATH", help="write the figures to this file, too")
    parser.add_argument(
        "--only", nargs="+", default=DEFAULT_PARTS, choices=PARTS, help="parts (default: all but the last four)"
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> "list[Row]":
    """Measure, print the table, write JSON; returns the rows.

    Raises:
        UserError: the JSON file cannot be written, or a CLIP is missing.
    """
    if args.json and not is_writable(Path(args.json).absolute().parent):
        raise UserError(f"--json names {args.json}, where nothing can be written; name a file in another folder.")
    start = time.perf_counter()
    rows: list[Row] = []
    threads: dict[str, int] = {}
    growth: dict[str, dict] = {}
    with tempfile.TemporaryDirectory(prefix="spg-benchmark-") as folder:
        for part in PARTS:
            if part in args.only:
                said(f"measuring: {part}")
                for row in measure(part, args.quick, folder, growth, threads):
                    said(" | ".join(cells(row)))
                    rows.append(row)
    seconds = time.perf_counter() - start
    print(report(rows, growth, seconds))
    if args.json:
        record = {"machine": machine(), "threads": threads, "quick": args.quick, "seconds": round(seconds, 1)}
        write_json(args.json, rows, growth, record)
    return rows


def measure(part: str, quick: bool, folder: str, growth: dict[str, dict], threads: dict[str, int]) -> "Iterator[Row]":
    """Yield the rows of one part; fills `growth`, and `threads` with the threads that each part ran with."""
    import torch

    from scripts.benchmarks import families, field, launching, neighbours, spg, text

    amounts = text.QUICK if quick else text.FULL
    if part == "text":
        yield from text_rows(amounts, quick)
    elif part == "spg":
        images = spg.choose_images(folder)
        yield from spg.SpgBench(images, spg.QUICK if quick else spg.FULL, Path(folder) / "runs").rows()
    elif part == "field":
        yield from field.field_rows(quick, Path(folder) / "field")
    elif part == "memory":
        yield from text.memory_rows(amounts)
    elif part == "families":
        yield from families.family_rows(amounts, Path(folder), quick)
    elif part == "neighbours":
        yield from neighbours.neighbour_rows(quick)
    elif part == "launching":
        yield from launching.launching_rows(quick, Path(folder) / "launching")
    else:
        growth.update(text.growth(tiny_clips()[0][1], amounts))
    threads[part] = torch.get_num_threads()


def tiny_clips() -> "list[tuple[str, CLIP]]":
    """(name, model) of the tiny CLIPs that are here: those of ../shared, else the one that ships.

    Raises:
        UserError: there is none.
    """
    from scripts.benchmarks.spg import MINI_CLIP, SHARED
    from trainers.modules.clip.backbone import load_backbone

    files = sorted((SHARED / "clip").glob("*.pt")) or [MINI_CLIP]
    return [(path.stem, load_backbone(str(path)).model) for path in files]


def text_rows(amounts: "TextAmounts", quick: bool) -> "Iterator[Row]":
    """Yield the rows of the text tower at ViT-B/16 and RN50 sizes, and of the tiny CLIPs."""
    from scripts.benchmarks.text import CLASS_GOALS, CLASSES, cocoop, coop, random_clip, text_alone

    for size in ("ViT-B/16", "RN50"):
        is_vit = size == "ViT-B/16"
        model = random_clip(size, image_tower=is_vit)
        # RN50's text tower is that of ViT-B/16 but for the projection: a quick run need not time all of it twice.
        for n_classes in tuple(CLASSES) if is_vit or not quick else (7,):
            goal = CLASS_GOALS[n_classes] if is_vit else None
            yield text_alone(f"{size} size", model, n_classes, amounts, goal)
        if is_vit or not quick:
            yield coop(f"{size} size", model, CLASSES[65], amounts, 12 if is_vit else None)
        if is_vit:
            yield cocoop(f"{size} size", model, CLASSES[65], amounts, 8)
    for name, model in tiny_clips():
        for n_classes in CLASSES:
            yield text_alone(name, model, n_classes, amounts)


def report(rows: "list[Row]", growth: dict[str, dict], seconds: float) -> str:
    """The table, how cost grows, and whether outputs agree, as text."""
    from tabulate import tabulate

    headers = ("what", "ours", "reference", "ratio", "goal", "max difference")
    lines = [tabulate([cells(row) for row in rows], headers, tablefmt="github", disable_numparse=True)] if rows else []
    notes = [f"- {row.what}: {row.note}" for row in rows if row.note]
    if notes:
        lines.append("How it was measured:\n" + "\n".join(notes))
    for name, found in growth.items():
        costs = ", ".join(f"{number:,}: {1000 * s:.3g} ms" for number, s in found["seconds_per_image"].items())
        verdict = "linear or better" if found["linear_or_better"] else "worse than linear"
        lines.append(f"Time per image by number of {name} ({verdict}): {costs}")
    missed = [row.what for row in rows if row.reached is False]
    if missed:
        lines.append("Goals that were not reached: " + "; ".join(missed))
    differing = [row.what for row in rows if not row.agrees]
    agreed = "Outputs of both sides agree within 1e-4, those of families within 1e-5."
    lines.append("OUTPUTS DIFFER: " + "; ".join(differing) if differing else agreed)
    lines.append(f"{seconds:.0f} s in all")
    return "\n\n".join(lines)


def cells(row: "Row") -> tuple[str, ...]:
    """The table's cells of a row."""
    goal = "" if row.goal is None else (f"< {row.goal:g} {row.unit}" if row.is_bound else f"{row.goal}x")
    if row.reached is not None:
        goal += " reached" if row.reached else " NOT reached"
    return (
        row.what,
        figure(row.ours, row.unit),
        figure(row.reference, row.unit),
        "" if row.ratio is None else f"{row.ratio:.1f}x",
        goal,
        "" if row.difference is None else f"{row.difference:.1e}",
    )


def figure(value: float | None, unit: str) -> str:
    """A measured value with its unit; empty for None."""
    if value is None:
        return ""
    return f"{value:,.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    from common.reproducible import versions

    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": versions(),
    }


def write_json(path: str, rows: "list[Row]", growth: dict[str, dict], record: dict[str, Any]) -> None:
    """Write figures as JSON, whole or not at all."""
    with atomic_write(path, "w") as handle:
        content = {"format": FORMAT, **record, "rows": [row.record() for row in rows], "growth": growth}
        json.dump(content, handle, indent=2)
        handle.write("\n")


def said(line: str) -> None:
    """Say on stderr what goes on."""
    print(line, file=sys.stderr, flush=True)


@command
def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 1 if outputs differ or with one message."""
    args = parse_args(argv)
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
    return int(not all(row.agrees for row in run(args)))


if __name__ == "__main__":
    sys.exit(main())
