"""A short MiniDigits run of each method gives the recorded digits. As a script, this file records them.

A machine like the recording one gives equal digits. Others sum in another order, which the tolerances allow.
"""

import json
import os
import platform
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from commands import CLIP, REPOSITORY, predictions, results, run_train, train

DIGITS = Path(__file__).resolve().parent / "digits"
KEYS = ("accuracy", "macro_f1", "val_history", "loss_history")
EVERY = 16  # logits.npz has the logits of every 16th test image
# To encode each image once an epoch is faster than the 8 views of mini_digits.yaml.
SHORT = "OPTIM.MAX_EPOCH 2 TRAINER.FEATURES.TRAIN_VIEWS 0"
STAGES = SHORT + " OPTIM.WARMUP_EPOCH 1 TRAINER.{}.STAGE1_OPTS ['OPTIM.MAX_EPOCH',2,'OPTIM.WARMUP_EPOCH',1]"
RUNS = {  # settings by trainer that make its run short
    **dict.fromkeys(["ZeroshotCLIP", "ZeroshotCLIP2", "LinearProbe"], ""),
    **dict.fromkeys(["CoCoOp", "KgCoOp", "DPL", "VPT", "MaPLe", "PromptSRC"], SHORT),
    "CoOp": "OPTIM.MAX_EPOCH 2 TRAINER.FEATURES.TRAIN_VIEWS 1",
    "VP": f"{SHORT} OPTIM.LR 0.5",  # at 0.002 its pixels hardly move
    "DPSPG": STAGES.format("DPSPG"),
    # At 0.002 a GAN enlarges the differences between processors beyond the tolerances.
    "SPG": STAGES.format("SPG") + " OPTIM.LR 0.0002",
}


def machine() -> str:
    """Name the processor and the packages: where these are equal, the bits of a run are."""
    cpu = re.search("model name.*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    versions = (f"{name} {sys.modules[name].__version__}" for name in ("torch", "numpy", "PIL"))
    return ", ".join([cpu[1] if cpu else platform.platform(), *versions])


def run(trainer: str, folder: Path) -> tuple[dict, np.ndarray]:
    """Run train.py in this process: digits by key, logits of some images less the largest of each row."""
    config = REPOSITORY / "configs/trainers" / {"SPG": "SPG_CGAN"}.get(trainer, trainer) / "mini_digits.yaml"
    import torch
    from reference import tiny_clip

    torch.save(tiny_clip(vision=3).state_dict(), folder / "vit.pt")
    clip = folder / "vit.pt" if trainer in ("VPT", "MaPLe", "PromptSRC") else CLIP
    words = [*RUNS[trainer].split(), "USE_CUDA", "False", "DATALOADER.NUM_WORKERS", "0"]
    flags = ("--config-file", config) if config.is_file() else ()
    options = {"images": "data", "dataset": "mini_digits", "target": "sketch", "backbone": clip, "flags": flags}
    run_train(folder, train(trainer, trainer, *words, **options))
    found, rows = results(folder / trainer), predictions(folder / trainer)
    logits = np.load(folder / trainer / "logits.npy")[::EVERY].astype(np.float32)
    digits = {key: found[key] for key in KEYS} | {"predictions": ",".join(row["prediction"] for row in rows)}
    return digits, logits - logits.max(axis=1, keepdims=True)


@pytest.mark.parametrize("trainer", RUNS)
def test_a_run_gives_the_recorded_digits(trainer, tmp_path_factory):
    digits, logits = run(trainer, tmp_path_factory.getbasetemp())  # runs share images and features
    recorded = json.loads((DIGITS / "digits.json").read_text(encoding="utf-8"))
    expected = recorded[trainer]
    np.testing.assert_allclose(logits, np.load(DIGITS / "logits.npz")[trainer], rtol=2e-3, atol=2e-2)
    if recorded["machine"] == machine():
        assert digits == expected
    predictions, before = (one["predictions"].split(",") for one in (digits, expected))
    assert sum(a != b for a, b in zip(predictions, before, strict=True)) <= 8  # of 400
    for key in ("accuracy", "macro_f1"):
        assert digits[key] == pytest.approx(expected[key], abs=0.5)  # two images
    assert digits["val_history"] == pytest.approx(expected["val_history"], abs=100 / 360 + 1e-6)
    for losses, others in zip(digits["loss_history"], expected["loss_history"], strict=True):
        tolerance = {"rel": 1e-3}, {"abs": 0.3}  # "acc" may differ by two training images
        assert losses == {key: pytest.approx(value, **tolerance[key == "acc"]) for key, value in others.items()}


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "SPG_DASSL": "bundled"}
    sys.path[:0] = map(str, (REPOSITORY, REPOSITORY / "compat", REPOSITORY / "tests"))
    with tempfile.TemporaryDirectory() as name:
        found = {trainer: run(trainer, Path(name)) for trainer in RUNS}
    record = {"machine": machine(), **{trainer: digits for trainer, (digits, _) in found.items()}}
    (DIGITS / "digits.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    np.savez_compressed(DIGITS / "logits.npz", **{trainer: logits for trainer, (_, logits) in found.items()})
