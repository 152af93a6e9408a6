"""Steps of CoOp next to other load, with our settings of threads and with PyTorch's.

Threads are set once in a process, so each worker is one: `python -m scripts.benchmarks.neighbours <load> <threads>
<steps>` prints the duration and the last loss.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from common.startup import REPOSITORY, prepare_imports
from common.threads import SLEEP, plan_threads, use_sleeping_waits, use_threads
from scripts.benchmarks.timing import Row

LIMIT = 40.0  # s: a slower worker stops, and its time is scaled from its completed steps
CONDITIONS = {  # (busy loops, workers at once)
    "alone": (0, 1),
    "with one busy loop": (1, 1),
    "with two busy loops": (2, 1),
    "two at once": (0, 2),
}


class Load(NamedTuple):
    """Numbers of steps, class names, and images in a step."""

    steps: int
    n_classes: int
    n_images: int


LOADS = {"tiny CLIP": Load(1500, 7, 8), "ViT-B/16 size": Load(6, 65, 4)}


def neighbour_rows(quick: bool, folder: Path) -> Iterator[Row]:
    """Yield a row for each load and condition."""
    for name, load in LOADS.items():
        n_steps = load.steps // 2 if quick else load.steps
        for condition, (n_loops, n_workers) in CONDITIONS.items():
            ours, theirs = (run_workers([name, threads, n_steps], n_loops, n_workers) for threads in ("ours", "torch"))
            gap = max(abs(one["loss"] - other["loss"]) for one in ours for other in theirs)
            seconds = max(worker["seconds"] for worker in ours)
            expected = max(worker["seconds"] for worker in theirs)
            note = f"{n_steps} steps; the reference has the threads of PyTorch"
            yield Row(f"{name}, {condition}", seconds, expected, "s", None, gap, note)


def run_workers(words: list, n_loops: int, n_workers: int) -> list[dict[str, float]]:
    """Run workers at once, next to busy loops, and return their {"seconds", "loss"}."""
    environment = {name: value for name, value in os.environ.items() if name not in (*SLEEP, "OPENBLAS_THREAD_TIMEOUT")}
    command = [sys.executable, "-W", "ignore", "-m", "scripts.benchmarks.neighbours", *map(str, words)]
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n_loops)]
    try:
        start = partial(subprocess.Popen, command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE)
        workers = [start() for _ in range(n_workers)]
        return [json.loads(worker.communicate()[0]) for worker in workers]
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def work(name: str, threads: str, n_steps: int) -> dict[str, float]:
    """Make steps of CoOp that encode their images."""
    if threads == "ours":
        use_sleeping_waits()
    prepare_imports()
    import reference
    import torch

    from scripts.benchmarks.methods import CLASSES, random_clip
    from trainers.modules.clip.backbone import Backbone
    from trainers.modules.prompt_encoder import PromptEncoder

    load = LOADS[name]
    model = reference.tiny_clip() if name == "tiny CLIP" else random_clip(image_tower=True)
    if threads == "ours":
        n_weights = Backbone(model, name, "fp32", torch.device("cpu")).n_tower_weights
        use_threads(plan_threads(n_weights))
    encoder = PromptEncoder(model, CLASSES[load.n_classes])
    context = encoder.initial_context().requires_grad_()
    images = torch.randn(load.n_images, 3, model.visual.input_resolution, model.visual.input_resolution)
    labels = torch.arange(load.n_images) % load.n_classes

    def step() -> float:
        with torch.no_grad():
            features = reference.image_features(model, images)
        loss = torch.nn.functional.cross_entropy(features @ encoder(context).t(), labels)
        loss.backward()
        return loss.item()

    loss, start, n_done = step(), time.perf_counter(), 0
    while n_done < n_steps and time.perf_counter() - start < LIMIT:
        loss, n_done = step(), n_done + 1
    return {"seconds": (time.perf_counter() - start) * n_steps / n_done, "loss": loss}


if __name__ == "__main__":
    print(json.dumps(work(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
