"""Where the repository is, and train.py's arguments for a run of seconds."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def command_line(trainer, target, *opts, flags=(), root="data", clip="tiny.pt"):
    """Arguments of train.py for a quick run on a folder of images."""
    config = "SPG_CoOp" if trainer in ("SPG_CoOp", "CoOp") else "SPG_CGAN"
    arguments = ["--trainer", trainer, "--root", str(root), "--backbone", str(clip), "--seed", "1"]
    arguments += ["--dataset-config-file", str(REPOSITORY / "configs/datasets/folder.yaml")]
    arguments += ["--config-file", str(REPOSITORY / f"configs/trainers/{config}/default.yaml")]
    arguments += ["--target-domains", target, "--output-dir", "run", *flags]
    arguments += ["DATALOADER.NUM_WORKERS", "0", "DATALOADER.TRAIN_X.BATCH_SIZE", "8", "OPTIM.MAX_EPOCH", "2"]
    return [*arguments, "TRAINER.SPG.STAGE1_OPTS", "['OPTIM.MAX_EPOCH', 2]", *opts]
