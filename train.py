"""Train and test one method on one choice of source and target domains (CoOp's command line)."""

import argparse
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

from common.startup import escape_unprintable, prepare_imports, split_at_key, start_command

if __name__ == "__main__":
    start_command()  # before any package is imported

from common.errors import UserError, explain, user_errors
from common.files import make_output_folder
from common.interruption import Interrupted, end_after_step, interruption
from common.locks import run_lock
from common.progress import lines_above_bars
from common.reproducible import make_deterministic
from common.run.record import is_finished, read_run_record
from common.threads import loader_workers
from trainers.methods import METHODS

if TYPE_CHECKING:
    from yacs.config import CfgNode


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line. Nothing heavy is imported before this, so that --help answers at once."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Settings: --dataset-config-file, --config-file, these flags, KEY VALUE pairs; the last one wins.",
    )
    parser.add_argument("--root", default="", help="folder that holds the data sets")
    parser.add_argument("--output-dir", default="", help="folder for log, checkpoints and results.json")
    parser.add_argument(
        "--resume", default="", help="folder of an unfinished run to go on from (default: the output folder)"
    )
    parser.add_argument("--seed", type=int, default=-1, help="a number from 0 makes the run repeatable")
    parser.add_argument("--source-domains", nargs="+", default=None, help="default: all domains but the targets")
    parser.add_argument("--target-domains", nargs="+", default=None, help="full names or one-letter codes")
    parser.add_argument("--transforms", nargs="+", default=None, help="training transforms, instead of the config's")
    parser.add_argument("--config-file", default="", help="config of the method, configs/trainers/<Trainer>/*.yaml")
    parser.add_argument("--dataset-config-file", default="", help="config of the data set, configs/datasets/*.yaml")
    parser.add_argument("--trainer", default="", help=", ".join(method.trainer for method in METHODS))
    parser.add_argument("--backbone", default="", help='a CLIP: "RN50", "ViT-B/16", ..., or what BACKBONES.md names')
    parser.add_argument("--head", default="", help=argparse.SUPPRESS)
    parser.add_argument("--eval-only", action="store_true", help="test the model in --model-dir")
    parser.add_argument("--model-dir", default="", help="folder of the trained run for --eval-only")
    parser.add_argument("--load-epoch", type=int, default=None, help="epoch of the checkpoint (default: the best)")
    parser.add_argument("--no-train", action="store_true", help="build everything, but do not train")
    parser.add_argument("--no-feature-cache", action="store_true", help="do not keep image features on disk")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys, such as OPTIM.MAX_EPOCH 10"
    )
    args = parser.parse_args(argv)
    # argparse hands KEY VALUE pairs that follow a list of domains to that list.
    for name in ("source_domains", "target_domains", "transforms"):
        words, opts = split_at_key(getattr(args, name) or [])
        setattr(args, name, words)
        args.opts = opts + args.opts
    return args


def setup_cfg(args: argparse.Namespace) -> "CfgNode":
    """The frozen config of a command line.

    Raises:
        UserError: a config file is missing or wrong, a key does not exist, or a value has the wrong type.
    """
    from trainers.authors_configs import merge_method_file
    from trainers.config import apply_settings, default_cfg, merge_file

    cfg = default_cfg()
    if args.dataset_config_file:
        merge_file(cfg, args.dataset_config_file)
    if args.config_file:
        merge_method_file(cfg, args.config_file, args.trainer)
    apply_flags(cfg, args)
    apply_settings(cfg, args.opts)
    cfg.DATALOADER.NUM_WORKERS = loader_workers(cfg.DATALOADER.NUM_WORKERS)
    cfg.freeze()
    return cfg


def apply_flags(cfg: "CfgNode", args: argparse.Namespace) -> None:
    """Put the flags that were given into cfg."""
    from trainers.config import set_key

    given = {
        "DATASET.ROOT": args.root,
        "OUTPUT_DIR": args.output_dir,
        "RESUME": args.resume,
        "DATASET.SOURCE_DOMAINS": args.source_domains,
        "DATASET.TARGET_DOMAINS": args.target_domains,
        "INPUT.TRANSFORMS": args.transforms,
        "TRAINER.NAME": args.trainer,
        "MODEL.BACKBONE.NAME": args.backbone,
        "MODEL.HEAD.NAME": args.head,
    }
    for key, value in given.items():
        if value:
            set_key(cfg, key, value)
    if args.seed >= 0:
        cfg.SEED = args.seed
    if args.config_file:
        cfg.TRAINER.CONFIG = os.path.splitext(os.path.basename(args.config_file))[0]
    if args.no_feature_cache:
        cfg.TRAINER.FEATURES.CACHE = False


def check_device(args: argparse.Namespace) -> None:
    """CUDA is used where there is one; asking for it by name where there is none is an error."""
    import torch

    wanted = dict(zip(args.opts[::2], args.opts[1::2], strict=False)).get("USE_CUDA", "False")
    if str(wanted).lower() in ("true", "1") and not torch.cuda.is_available():
        raise UserError(
            "USE_CUDA True asks for a GPU, but PyTorch finds no CUDA device here. Leave it out to run on the CPU, or "
            f"install a PyTorch build for your GPU (this is torch {torch.__version__})."
        )


def check_names(cfg: "CfgNode") -> None:
    """Raise UserError unless trainer, data set and backbone are named and known."""
    from dassl.data.datasets import DATASET_REGISTRY
    from dassl.engine import TRAINER_REGISTRY

    for what, name, registry, mend in (
        ("trainer", cfg.TRAINER.NAME, TRAINER_REGISTRY, "--trainer"),
        ("data set", cfg.DATASET.NAME, DATASET_REGISTRY, "--dataset-config-file configs/datasets/<name>.yaml"),
    ):
        accepted = registry.registered_names()
        if name not in accepted:
            found = f"unknown {what} {name!r}" if name else f"no {what} is named"
            raise UserError(f"{found[0].upper()}{found[1:]}; accepted: {', '.join(sorted(accepted))} ({mend}).")
    if not cfg.MODEL.BACKBONE.NAME:
        raise UserError('No backbone is named: pass --backbone, for example "ViT-B/16" or the path of a CLIP file.')


def build(args: argparse.Namespace, cfg: "CfgNode") -> Any:
    """Seed the random generators, start the log and build the trainer."""
    from dassl.engine import build_trainer
    from dassl.utils import set_random_seed, setup_logger

    from trainers.authors_configs import merge_method_file
    from trainers.config import default_cfg

    if cfg.SEED >= 0:
        make_deterministic()
        set_random_seed(cfg.SEED)
    setup_logger(cfg.OUTPUT_DIR)
    escape_unprintable(getattr(sys.stdout, "file", None))  # the log of an installed Dassl
    if args.config_file and (line := merge_method_file(default_cfg(), args.config_file, args.trainer)):
        print(line)
    return build_trainer(cfg)


def run(args: argparse.Namespace) -> None:
    """Do what the command line says."""
    cfg = setup_cfg(args)
    if os.path.isfile(cfg.OUTPUT_DIR):
        raise UserError(f"--output-dir {cfg.OUTPUT_DIR} is a file; name a folder.")
    finished = is_finished(cfg.OUTPUT_DIR, tested=not cfg.TEST.NO_TEST)
    in_place = args.eval_only and os.path.realpath(cfg.OUTPUT_DIR) == os.path.realpath(args.model_dir)
    if args.eval_only and finished and not in_place:
        raise UserError(f"{cfg.OUTPUT_DIR} holds the results of another run; name another --output-dir for this test.")
    record = read_run_record(cfg.OUTPUT_DIR)
    if args.eval_only and not in_place and record and record.identity.get("tested model") == "its own":
        raise UserError(f"{cfg.OUTPUT_DIR} holds an unfinished run; name another --output-dir for this test.")
    if args.eval_only and not args.model_dir:
        raise UserError("--eval-only needs --model-dir, the folder of the trained run to test.")

    import trainers.all  # noqa: F401 (registers trainers and data sets)
    from trainers.base.run_record import check_finished

    check_device(args)
    check_names(cfg)
    if not args.eval_only and finished:
        check_finished(cfg.OUTPUT_DIR, cfg)
        print(f"{cfg.OUTPUT_DIR} holds a finished run; skipped. Name another --output-dir to run again.")
        return
    make_output_folder(cfg.OUTPUT_DIR)
    # A test in the folder of its model leaves that run's files as they are, so it may share it.
    with contextlib.nullcontext() if in_place else run_lock(cfg.OUTPUT_DIR):
        if in_place or not is_finished(cfg.OUTPUT_DIR, tested=not cfg.TEST.NO_TEST):
            run_trainer(args, cfg, in_place)  # else another process has just finished it


def run_trainer(args: argparse.Namespace, cfg: "CfgNode", in_place: bool) -> None:
    """Build the trainer, then train or test."""
    trainer = build(args, cfg)
    if args.eval_only:
        trainer.test_run(args.model_dir, args.load_epoch)
        if not in_place:
            trainer.write_run_record()
            trainer.write_results()
    elif not args.no_train:
        trainer.train()


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 with one message, or 130 and 143 if it was interrupted."""
    code, message = execute(parse_args(argv))
    if message:
        print(f"Error: {message}" if code == 1 else message, file=sys.stderr)
    return code


def execute(args: argparse.Namespace) -> tuple[int, str]:
    """Run a parsed command line; returns the exit code of `main`, and the error message or ""."""
    prepare_imports()
    try:
        with end_after_step(), lines_above_bars():
            run(args)
    except user_errors() as error:
        return 1, str(error)
    except KeyboardInterrupt:  # the second one, which does not wait for the end of the step
        return 130, "Interrupted at once. The same command goes on after the last completed epoch."
    except (Interrupted, OSError, RuntimeError, MemoryError, UnicodeEncodeError) as error:
        # A loader worker may have got the signal, too, and ended first.
        due = error if isinstance(error, Interrupted) else interruption()
        if due is not None:
            return due.exit_code, f"Interrupted by {due}. The same command goes on after the last completed epoch."
        message = explain(error)
        if message is None:
            raise
        return 1, message
    return 0, ""


if __name__ == "__main__":
    sys.exit(main())
