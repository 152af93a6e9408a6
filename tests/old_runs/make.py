"""Make runs.tar.xz: runs of every trainer as an earlier revision of this code left them, for test_old_runs.py.

    python tests/old_runs/make.py               by 80e5547
    python tests/old_runs/make.py <revision>    by another one

The revision is cloned into a temporary folder, and its own train.py makes the runs there, each in a working folder of
its own that holds `stripes` (the 30 images), `tiny.pt` (the tiny CLIP) and, once it ran, `run` and `output`. Images and
CLIP are made by the tests of the present code. The archive holds of each trainer

    <trainer>/unfinished     a run of two epochs that was stopped after the first; of SPG, after the first of stage II;
                             of one that has no epochs, before its test
    <trainer>/finished       a run that came to its end
    <trainer>/expected.json  the results.json that the same revision's code came to from `unfinished`

and circumstances.json, what the numbers depend on beside the code.

SPG's networks would take 20 MB. So what is large in a checkpoint is squeezed, before the revision's code goes on from
it: weights to three values (-a, 0, a), moments of optimisers to zeros. `finished` holds its best model in that form,
tested by the revision's code, and no more of SPG's networks than that takes.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import torch
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
ARCHIVE = Path(__file__).with_name("runs.tar.xz")
AS_THEN = Path(__file__).with_name("configs")  # of trainers whose default is another one since then
CIRCUMSTANCES = "circumstances.json"
REVISION = "80e5547"
TRAINERS = ("ZeroshotCLIP", "ZeroshotCLIP2", "LinearProbe", "CoOp", "CoCoOp", "SPG_CoOp", "SPG_CGAN", "SPG")
LABELS_OF = {"SPG_CGAN": "SPG"}  # whose prompt labels it takes
WITHOUT_EPOCHS = ("ZeroshotCLIP", "ZeroshotCLIP2")

LARGE = 10_000  # numbers; a tensor of more is squeezed
KEPT = 1 / 16  # share of its weights that do not become 0
AT_MOST_MB = 1
SIDE = 32  # of the images as the tiny CLIP sees them, in pixels
LEFT_OUT = ("log.txt*", "tensorboard", "feature_cache", "owner.lock")  # not needed, or of one machine

# Run by the revision's code: train.py, which ends before the second epoch or the test, whichever comes first.
STOPPED = """
import sys
from common.dassl_path import use_dassl
use_dassl()
import datasets, train, trainers.all
from dassl.engine import TRAINER_REGISTRY

class Stopped(BaseException):
    pass

trainer = TRAINER_REGISTRY.get(sys.argv[1])
before_epoch, test = trainer.before_epoch, trainer.test

def stop_before_epoch(self):
    if type(self) is trainer and self.epoch == 1:
        raise Stopped
    before_epoch(self)

def stop_before_test(self, split=None):
    if type(self) is trainer and split != "val":
        raise Stopped
    return test(self, split)

trainer.before_epoch, trainer.test = stop_before_epoch, stop_before_test
try:
    train.main(sys.argv[2:])
except Stopped:
    sys.exit(0)
sys.exit("The run was not stopped.")
"""


def arguments(trainer: str, code: Path) -> list[str]:
    """Arguments of train.py for the runs, in a working folder.

    They are part of the archive, so they do not go by those of other tests' runs.

    Args:
        trainer: its name.
        code: the repository whose configs are taken, where those of then are not in AS_THEN.
    """
    configs = code / "configs"
    method = "SPG_CGAN" if trainer == "SPG" else trainer
    config = AS_THEN / method / "default.yaml"
    if not config.is_file():
        config = configs / f"trainers/{method}/default.yaml"
    words = ["--trainer", trainer, "--root", "stripes", "--backbone", "tiny.pt", "--seed", "1", "--output-dir", "run"]
    words += ["--dataset-config-file", str(configs / "datasets/folder.yaml")]
    words += ["--config-file", str(config), "--target-domains", "red"]
    words += ["--source-domains", "red"] if trainer == "SPG_CoOp" else []
    words += ["DATALOADER.NUM_WORKERS", "0", "DATALOADER.TRAIN_X.BATCH_SIZE", "8", "OPTIM.MAX_EPOCH", "2"]
    return [*words, "TRAINER.SPG.STAGE1_OPTS", "['OPTIM.MAX_EPOCH', 2]"]


def circumstances(images: Path, clip_file: Path) -> dict[str, str]:
    """Fingerprints of the tiny CLIP's weights and of the images' pixels at its size, by name."""
    weights, pixels = hashlib.sha256(), hashlib.sha256()
    for name, tensor in sorted(torch.load(clip_file, weights_only=True).items()):
        weights.update(name.encode() + tensor.numpy().tobytes())
    for path in sorted(images.rglob("*.png")):
        with Image.open(path) as image:
            small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        pixels.update(path.relative_to(images).as_posix().encode() + small.tobytes())
    return {"the tiny CLIP": weights.hexdigest(), "the images": pixels.hexdigest()}


def make_inputs(folder: Path) -> None:
    """Make `stripes` and `tiny.pt`, as the tests have them."""
    sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]
    from reference import tiny_clip

    from scripts.launching.quick_run import make_images

    make_images(folder / "stripes")
    torch.save(tiny_clip().state_dict(), folder / "tiny.pt")


def make_place(inputs: Path, place: Path) -> None:
    """Make a working folder with the inputs in it."""
    place.mkdir(parents=True, exist_ok=True)
    for name in ("stripes", "tiny.pt"):
        (place / name).symlink_to(inputs / name)


def run(code: Path, place: Path, trainer: str, stopped: bool) -> None:
    """Run the revision's train.py in a working folder, to the end or until it is stopped."""
    begin = ["-c", STOPPED, trainer] if stopped else [str(code / "train.py")]
    path = os.pathsep.join(map(str, (code, code / "compat")))
    environment = {**os.environ, "SPG_DASSL": "bundled", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    subprocess.run([sys.executable, *begin, *arguments(trainer, code)], cwd=place, env=environment, check=True)


def squeeze(run_folder: Path) -> None:
    """Squeeze all checkpoints of a run that hold large tensors."""
    for path in run_folder.rglob("*.pth.tar*"):
        checkpoint = torch.load(path, weights_only=True)
        weights = [value for value in checkpoint["state_dict"].values() if isinstance(value, torch.Tensor)]
        if not any(weight.numel() > LARGE for weight in weights):
            continue
        for weight in weights:
            if weight.numel() > LARGE:
                weight.copy_(three_values(weight))
        for state in checkpoint["optimizer"]["state"].values():
            for value in state.values():
                if value.numel() > LARGE:
                    value.zero_()
        with open(path, "wb") as handle:
            torch.save(checkpoint, handle)


def three_values(weight: torch.Tensor) -> torch.Tensor:
    """A tensor whose largest values become -a or a, all others 0, and whose norm stays; one that is so stays."""
    if len(weight.unique()) <= 3:
        return weight
    sizes = weight.abs()
    kept = sizes > torch.quantile(sizes.flatten()[:: -(-sizes.numel() // 2**20)], 1 - KEPT)
    return weight.sign() * kept * (weight.norm() / kept.sum().sqrt())


def drop_what_rebuilding_does_not_take(run_folder: Path) -> None:
    """Of SPG's networks, leave a finished run the best generator."""
    if (run_folder / "generator").is_dir():
        shutil.rmtree(run_folder / "discriminator")
        for path in (run_folder / "generator").glob("model.pth.tar-*"):
            path.unlink()


def make_runs(code: Path, inputs: Path, folder: Path, trainer: str) -> None:
    """Make the two runs of a trainer and expected.json, in <folder>/<trainer>."""
    unfinished, finished = folder / trainer / "unfinished", folder / trainer / "finished"
    make_place(inputs, unfinished)
    if trainer in LABELS_OF:
        labels = "unfinished/output/prompt_labels"
        shutil.copytree(folder / LABELS_OF[trainer] / labels, folder / trainer / labels)
    run(code, unfinished, trainer, stopped=True)
    squeeze(unfinished / "run")
    shutil.copytree(unfinished, finished, symlinks=True)
    run(code, finished, trainer, stopped=False)
    results = finished / "run/results.json"
    shutil.move(results, folder / trainer / "expected.json")
    squeeze(finished / "run")
    run(code, finished, trainer, stopped=False)  # goes on after the last epoch: tests the squeezed model
    drop_what_rebuilding_does_not_take(finished / "run")


def clean(folder: Path, traces: list[str]) -> None:
    """Remove inputs, which are links, and what is left out.

    Raises:
        SystemExit: a file holds one of the traces, which tell of the machine.
    """
    for path in [path for pattern in LEFT_OUT for path in folder.rglob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in filter(Path.is_symlink, list(folder.rglob("*"))):
        path.unlink()
    for path in filter(Path.is_file, folder.rglob("*")):
        found = [trace for trace in traces if trace.encode() in path.read_bytes()]
        if found:
            raise SystemExit(f"{path} holds {', '.join(found)}.")


def pack(folder: Path, archive: Path) -> None:
    """Pack a folder's files, those of one name beside each other; equal files make equal archives."""
    paths = sorted(filter(Path.is_file, folder.rglob("*")), key=lambda path: (path.name, path.relative_to(folder)))
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for path in paths:
            content = path.read_bytes()
            info = tarfile.TarInfo(path.relative_to(folder).as_posix())
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def main() -> None:
    """Make the archive anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?", default=REVISION, help=f"of git (default: {REVISION})")
    revision = parser.parse_args().revision
    with tempfile.TemporaryDirectory() as name:
        code, inputs, folder = (Path(name).resolve() / part for part in ("code", "inputs", "runs"))
        subprocess.run(["git", "clone", "--quiet", "--shared", "--no-checkout", str(REPOSITORY), str(code)], check=True)
        subprocess.run(["git", "-C", str(code), "checkout", "--quiet", "--detach", revision], check=True)
        inputs.mkdir()
        make_inputs(inputs)
        for trainer in sorted(TRAINERS, key=lambda trainer: trainer in LABELS_OF):  # the labels first
            make_runs(code, inputs, folder, trainer)
        clean(folder, [str(Path(name).resolve()), str(REPOSITORY), str(Path.home())])
        found = circumstances(inputs / "stripes", inputs / "tiny.pt")
        (folder / CIRCUMSTANCES).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        pack(folder, ARCHIVE)
    size = ARCHIVE.stat().st_size / 2**20
    print(f"{ARCHIVE}: {size:.2f} MB")
    if size > AT_MOST_MB:
        raise SystemExit(f"That is more than {AT_MOST_MB} MB.")


if __name__ == "__main__":
    main()
