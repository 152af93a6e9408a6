"""Kill runs at random moments, resume them, and see whether they end as if nothing had happened.

    python scripts/kill_trial.py                       50 kills of whole SPG runs on 30 images; exit code 0 if all agree
    python scripts/kill_trial.py --kills 5 --trainer CoOp

A trial is one run: it is started, killed by SIGKILL after a random time, started again by the same command, and so on,
until it ends; then its results.json has to equal that of a run that nobody disturbed, number for number. Settings take
turns: with and without loader workers, exact and cached training features.
"""

import _repository

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from common.run.results import TIMES, read_results
from common.startup import REPOSITORY
from scripts.benchmarks.quick_run import arguments, make_images
from trainers.methods import METHODS

# What may differ between two runs that agree.
ASIDE = (*TIMES, "revision")
SETTINGS = {
    "exact, no workers": ["DATALOADER.NUM_WORKERS", "0"],
    "exact, workers": ["DATALOADER.NUM_WORKERS", "2"],
    "3 views encoded once": ["TRAINER.FEATURES.TRAIN_VIEWS", "3"],
}
# Those that take the embedded CLIP, whose image tower is a ResNet.
TRAINERS = [one.trainer for one in METHODS if one.learns and one.launchers and not one.needs_vit]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many in all (default: 50)")
    parser.add_argument("--trainer", default="SPG", choices=TRAINERS, help="which trainer (default: SPG, both stages)")
    parser.add_argument("--epochs", type=int, default=30, help="of each stage (default: 30)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments at which runs are killed")
    return parser.parse_args(argv)


def command_line(trainer: str, images: Path, backbone: Path, output: Path, epochs: int, opts: list[str]) -> list[str]:
    """The train.py command of a run that keeps to itself whatever it makes, below `output`."""
    node = "DPSPG" if trainer.startswith("DPSPG") else "SPG"
    opts = [
        f"TRAINER.{node}.LABEL_DIR",
        str(output / "labels"),
        "TRAINER.FEATURES.CACHE_DIR",
        str(output / "cache"),
        *opts,
    ]
    words = arguments(trainer, "red", images, backbone, output / "run", *opts, batch_size=4, epochs=epochs)
    return [sys.executable, str(REPOSITORY / "train.py"), *words]


def run_to_the_end(command: list[str], kill_after: float | None = None, log: Path | None = None) -> int:
    """Run a command, killed after some seconds; returns its exit code, -9 if it was killed before it ended."""
    environment = {**os.environ, "SPG_DASSL": "bundled"}
    with open(log or os.devnull, "ab") as handle:
        # A session of its own, so that its loader workers die with it.
        process = subprocess.Popen(command, stdout=handle, stderr=handle, env=environment, start_new_session=True)
        try:
            return process.wait(timeout=kill_after)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            return process.wait()


def outcome(run: Path) -> dict:
    """What the results.json in a run's folder says, without what may differ."""
    found = read_results(Path(run) / "results.json")
    return {key: value for key, value in found.items() if key not in ASIDE}


def where_killed(output: Path) -> str:
    """What the run was doing, by the last line of its log that tells."""
    try:
        text = (Path(output) / "console.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "at its start"
    marks = {"Stage II": "stage II", "Stage I": "stage I", "epoch [": "training", "Loading trainer": "while loading"}
    return next((name for mark, name in marks.items() if mark in text), "at its start")


def trial(command: list[str], output: Path, rng: random.Random, span: tuple[float, float], at_most: int) -> list[str]:
    """Kill a run again and again until it ends or was killed `at_most` times; returns where it was killed."""
    killed: list[str] = []
    log = Path(output) / "console.txt"
    while len(killed) < at_most:
        log.unlink(missing_ok=True)
        code = run_to_the_end(command, kill_after=rng.uniform(*span), log=log)
        if code == 0:
            return killed
        if code != -signal.SIGKILL:
            raise SystemExit(f"A run failed by itself (exit code {code}):\n{log.read_text(errors='replace')[-3000:]}")
        killed.append(where_killed(output))
    if (code := run_to_the_end(command, log=log)) != 0:
        raise SystemExit(f"A resumed run failed (exit code {code}):\n{log.read_text(errors='replace')[-3000:]}")
    return killed


def undisturbed(command: list[str], output: Path) -> tuple[dict, float]:
    """What a run comes to that is left alone, and how many seconds that takes."""
    output.mkdir()
    log, start = output / "console.txt", time.perf_counter()
    if run_to_the_end(command, log=log):
        raise SystemExit(log.read_text(encoding="utf-8", errors="replace")[-3000:])
    return outcome(output / "run"), time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 if every run that was killed ended as the undisturbed one."""
    args = parse_args(argv)
    learns = args.trainer == "VP"  # its image tower learns, so nothing is encoded once
    settings = [name for name, opts in SETTINGS.items() if not (learns and "TRAINER.FEATURES.TRAIN_VIEWS" in opts)]
    rng, expected = random.Random(args.seed), {}
    places: Counter[str] = Counter()
    trials = done = differing = 0
    with tempfile.TemporaryDirectory(prefix="spg-kills-") as temporary:
        folder = Path(temporary)
        images, backbone = folder / "images" / "stripes", REPOSITORY / "assets" / "mini_clip.pt"
        make_images(images)
        while done < args.kills:
            name = settings[trials % len(settings)]
            if name not in expected:
                output = folder / f"whole{trials}"
                expected[name] = undisturbed(
                    command_line(args.trainer, images, backbone, output, args.epochs, SETTINGS[name]), output
                )
                print(f"Undisturbed, {name}: {expected[name][1]:.1f} s", flush=True)
            whole, seconds = expected[name]
            output = folder / f"trial{trials}"
            output.mkdir()
            command = command_line(args.trainer, images, backbone, output, args.epochs, SETTINGS[name])
            killed = trial(command, output, rng, (0.3 * seconds, 1.1 * seconds), min(8, args.kills - done))
            found = outcome(output / "run")
            same = found == whole
            trials, done, differing = trials + 1, done + len(killed), differing + (not same)
            places.update(killed)
            verdict = "equal" if same else f"DIFFERENT in {', '.join(k for k in whole if whole[k] != found.get(k))}"
            print(f"Trial {trials}, {name}: killed {len(killed)} times ({', '.join(killed)}): {verdict}", flush=True)
    print(f"{done} kills in {trials} runs ({dict(places)}): {trials - differing} equal, {differing} different")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
