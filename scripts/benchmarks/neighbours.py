"""How a run fares beside other load: alone, beside busy loops, two at once; as we settle threads and as PyTorch does.

A worker is a process of its own, since how threads wait is settled once for a process:
`python -m scripts.benchmarks.neighbours <size> <how> <steps>`, from the repository's folder.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from common.startup import REPOSITORY, prepare_imports
from common.threads import SLEEP, plan_threads, use_sleeping_waits
from scripts.benchmarks.timing import Row

LIMIT = 40.0  # s: a worker that has not done its steps by then is judged by those that it has done
OURS, PYTORCH = "ours", "pytorch"
BUSY_LOOP = "while True: pass"
CONDITIONS = {  # (busy loops beside, workers at once)
    "alone": (0, 1),
    "beside one busy loop": (1, 1),
    "beside two busy loops": (2, 1),
    "two at once": (0, 2),
}


@dataclass(frozen=True)
class Load:
    """What a worker does.

    Attributes:
        name: for the table.
        size: of random_clip.
        steps: in a full measurement.
        classes: class names of the CoOp step.
        images: that each step encodes.
    """

    name: str
    size: str
    steps: int
    classes: int
    images: int


LOADS = (Load("tiny CLIP", "small", 3000, 7, 8), Load("ViT-B/16 size", "ViT-B/16", 6, 65, 4))


def neighbour_rows(quick: bool) -> Iterator[Row]:
    """Yield a row for each size and condition: seconds for the same steps, ours and as PyTorch settles threads."""
    for load in LOADS:
        steps = load.steps // 2 if quick else load.steps
        alone: dict[str, float] = {}
        for condition, (loops, workers) in CONDITIONS.items():
            seconds, losses = {}, {}
            for how in (OURS, PYTORCH):
                with busy_loops(loops):
                    found = run_workers(load, how, steps, workers)
                seconds[how] = max(record["seconds"] for record in found)
                losses[how] = {record["loss"] for record in found}
                alone.setdefault(how, seconds[how])
            times = {how: f"{seconds[how] / alone[how]:.2f}" for how in seconds}
            note = f"{steps} steps; ours {times[OURS]} times alone, as PyTorch settles threads {times[PYTORCH]} times"
            gap = max(abs(a - b) for a in losses[OURS] for b in losses[PYTORCH])
            yield Row(f"{load.name}, {condition}", seconds[OURS], seconds[PYTORCH], "s", None, gap, note)


@contextlib.contextmanager
def busy_loops(number: int) -> Iterator[None]:
    """Within the block, so many processes compute without end."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY_LOOP]) for _ in range(number)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def run_workers(load: Load, how: str, steps: int, number: int) -> list[dict[str, float]]:
    """Run workers at once; what each of them found: {"seconds", "loss"}."""
    environment = {name: value for name, value in os.environ.items() if name not in (*SLEEP, "OPENBLAS_THREAD_TIMEOUT")}
    command = [sys.executable, "-W", "ignore", "-m", "scripts.benchmarks.neighbours", load.name, how, str(steps)]
    workers = [
        subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, encoding="utf-8")
        for _ in range(number)
    ]
    found = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise RuntimeError(f"a worker of the benchmark failed: {' '.join(command)}")
    return [json.loads(text) for text in found]


def work(name: str, how: str, steps: int) -> dict[str, float]:
    """Steps of CoOp with the images encoded: s for all of them (scaled, where the time ran out), and the last loss."""
    if how == OURS:
        use_sleeping_waits()
    prepare_imports()
    import torch
    import torch.nn.functional as F

    from scripts.benchmarks.text import CLASSES, random_clip
    from trainers.modules.clip.backbone import Backbone
    from trainers.modules.prompt_encoder import PromptEncoder

    load = next(load for load in LOADS if load.name == name)
    model = random_clip(load.size, image_tower=load.size != "small")
    if how == OURS:
        backbone = Backbone(model, load.size, "fp32", torch.device("cpu"))
        plan_threads(backbone.n_tower_weights, workers=0).use(workers=0)
    encoder = PromptEncoder(model, CLASSES[load.classes])
    ctx = encoder.initial_context().requires_grad_()
    images = torch.randn(load.images, 3, model.visual.input_resolution, model.visual.input_resolution)
    labels = torch.arange(load.images) % load.classes

    def step() -> float:
        with torch.no_grad():
            features = F.normalize(model.encode_image(images), dim=-1)
        loss = F.cross_entropy(features @ encoder(ctx).t(), labels)
        loss.backward()
        return loss.item()

    loss, start, done = step(), time.perf_counter(), 0
    while done < steps and time.perf_counter() - start < LIMIT:
        loss, done = step(), done + 1
    return {"seconds": (time.perf_counter() - start) * steps / done, "loss": loss}


if __name__ == "__main__":
    print(json.dumps(work(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
