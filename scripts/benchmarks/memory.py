"""Peak memory of fresh processes with DomainNet's 345 classes at the size of ViT-B/16.

`python -m scripts.benchmarks.memory <batch>` prints the peak of one process in GB, with a batch of 0 for training.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from common.startup import REPOSITORY
from scripts.benchmarks.timing import Row


def memory_rows(quick: bool, folder: Path) -> Iterator[Row]:
    batch = 4 if quick else 32
    note = "the whole process, with the weights of the text tower"
    for work, images, goal in (("inference", batch, 8), ("CoOp forward and backward", 0, 4)):
        command = [sys.executable, "-W", "ignore", "-m", "scripts.benchmarks.memory", str(images)]
        found = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True).stdout
        name = f"peak memory, {work}, 345 classes{f', batch {images}' * bool(images)}, ViT-B/16 size"
        yield Row(name, float(found), None, "GB", goal, note=note)


def encode_prompts(batch: int) -> None:
    """Encode the prompts of 345 classes for a batch of contexts, or for one context with its gradient."""
    import torch
    from clip.model import CLIP

    from scripts.benchmarks.classes import DOMAIN_NET
    from trainers.modules.prompt_encoder import PromptEncoder

    # Not by the reference: a measured process imports nothing that it does not use.
    model = CLIP(512, 32, 1, 64, 16, 77, 49408, 512, 8, 12).eval().requires_grad_(False)
    encoder = PromptEncoder(model, DOMAIN_NET, 4)
    if batch:
        with torch.no_grad():
            encoder(torch.zeros(batch, 4, encoder.ctx_dim))
    else:
        encoder(torch.zeros(4, encoder.ctx_dim, requires_grad=True)).sum().backward()


def peak_gb() -> float:
    """Peak resident memory of this process. On Linux, ru_maxrss would start at the parent's."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**20


if __name__ == "__main__":
    encode_prompts(int(sys.argv[1]))
    print(peak_gb())
