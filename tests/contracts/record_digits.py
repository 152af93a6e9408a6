"""Record the digits of one short MiniDigits run of each method: `python tests/contracts/record_digits.py`."""

import csv
import json
import os
import platform
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DIGITS = Path(__file__).resolve().parent / "digits"
KEYS = ("accuracy", "macro_f1", "val_history", "loss_history")
EVERY = 16  # logits.npz has those of every 16th test image
# To encode each image once an epoch is faster than the 8 views of mini_digits.yaml.
SHORT = "OPTIM.MAX_EPOCH 2 TRAINER.FEATURES.TRAIN_VIEWS 0"
STAGES = SHORT + " OPTIM.WARMUP_EPOCH 1 TRAINER.{}.STAGE1_OPTS ['OPTIM.MAX_EPOCH',2,'OPTIM.WARMUP_EPOCH',1]"
# By trainer: its config and settings that make the run short.
RUNS = {
    "ZeroshotCLIP": ("ZeroshotCLIP/default", ""),
    "ZeroshotCLIP2": ("ZeroshotCLIP2/default", ""),
    "LinearProbe": ("LinearProbe/mini_digits", ""),
    "CoOp": ("CoOp/mini_digits", "OPTIM.MAX_EPOCH 2 TRAINER.FEATURES.TRAIN_VIEWS 1"),
    "CoCoOp": ("CoCoOp/mini_digits", SHORT),
    "KgCoOp": ("KgCoOp/mini_digits", SHORT),
    "DPL": ("DPL/mini_digits", SHORT),
    "VP": ("VP/mini_digits", f"{SHORT} OPTIM.LR 2"),  # at 0.002 its pixels hardly move
    "VPT": ("VPT/default", SHORT),
    "MaPLe": ("MaPLe/default", SHORT),
    "PromptSRC": ("PromptSRC/default", SHORT),
    "DPSPG": ("DPSPG/mini_digits", STAGES.format("DPSPG")),
    "SPG": ("SPG_CGAN/mini_digits", STAGES.format("SPG")),
}


def machine() -> str:
    """Name the processor and the packages: where these are equal, the bits of a run are."""
    cpu = re.search("model name.*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    versions = (f"{name} {sys.modules[name].__version__}" for name in ("torch", "numpy", "PIL"))
    return ", ".join([cpu[1] if cpu else platform.platform(), *versions])


def make_vit(path: Path) -> None:
    """Write the embedded CLIP with a small ViT of fixed random weights as its image tower."""
    import torch
    from clip.model import VisionTransformer

    state = torch.load(REPOSITORY / "assets/mini_clip.pt", map_location="cpu", weights_only=True)
    state = {key: value.float() for key, value in state.items() if not key.startswith("visual.")}
    random = np.random.RandomState(0)
    for key, value in VisionTransformer(32, 8, 64, 3, 1, 64).state_dict().items():
        drawn = torch.tensor(random.normal(0, 0.1, value.shape), dtype=torch.float32)
        state[f"visual.{key}"] = drawn + ("ln_" in key and key.endswith(".weight"))
    torch.save(state, path)


def run(trainer: str, folder: Path) -> tuple[dict, np.ndarray]:
    """Run train.py in this process: digits by key, logits of some images less the largest of each row."""
    import train

    config, opts = RUNS[trainer]
    configs, output, clip = REPOSITORY / "configs", folder / trainer, folder / "vit.pt"
    make_vit(clip)
    clip = clip if trainer in ("VPT", "MaPLe", "PromptSRC") else REPOSITORY / "assets/mini_clip.pt"
    words = ["--trainer", trainer, "--seed", "1", "--target-domains", "sketch", "--backbone", clip]
    words += ["--root", folder / "data", "--output-dir", output, "--config-file", configs / f"trainers/{config}.yaml"]
    words += ["--dataset-config-file", configs / "datasets/mini_digits.yaml", *opts.split()]
    streams = sys.stdout, sys.stderr
    try:
        assert train.main([*map(str, words), "USE_CUDA", "False", "DATALOADER.NUM_WORKERS", "0"]) == 0
    finally:
        sys.stdout, sys.stderr = streams  # Dassl's logger replaces them
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    rows = csv.DictReader((output / "predictions.csv").read_text(encoding="utf-8").splitlines())
    logits = np.load(output / "logits.npy")[::EVERY].astype(np.float32)
    digits = {key: results[key] for key in KEYS} | {"predictions": ",".join(row["prediction"] for row in rows)}
    return digits, logits - logits.max(axis=1, keepdims=True)


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "SPG_DASSL": "bundled"}
    sys.path.insert(0, str(REPOSITORY))
    with tempfile.TemporaryDirectory() as name:
        found = {trainer: run(trainer, Path(name)) for trainer in RUNS}
    record = {"machine": machine(), **{trainer: digits for trainer, (digits, _) in found.items()}}
    (DIGITS / "digits.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    np.savez_compressed(DIGITS / "logits.npz", **{trainer: logits for trainer, (_, logits) in found.items()})
