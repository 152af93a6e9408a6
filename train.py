"""Train and test one method on one choice of source and target domains (CoOp's command line)."""

import argparse
import os
import sys

from common.startup import escape_unprintable, prepare_imports, split_at_key, start_command

if __name__ == "__main__":
    start_command()  # before any package is imported

from yacs.config import CfgNode

from common.errors import RESUMES, UserError, explain, user_errors
from common.files import make_output_folder
from common.interruption import Interrupted, end_after_step, interruption
from common.locks import run_lock
from common.progress import lines_above_bars
from common.reproducible import make_deterministic
from common.run import RESULTS_FILE, is_finished, read_results, read_run_record
from common.threads import loader_workers
from trainers.methods import METHODS

SOURCES, TARGETS, TRANSFORMS = "DATASET.SOURCE_DOMAINS", "DATASET.TARGET_DOMAINS", "INPUT.TRANSFORMS"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line. Nothing heavy is imported before this, so that --help answers at once."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Settings: --dataset-config-file, --config-file, these flags, KEY VALUE pairs; the last one wins.",
    )
    # A flag of a config key has the key as its name in the parsed arguments.
    add = parser.add_argument
    add("--root", dest="DATASET.ROOT", help="folder that holds the data sets")
    add("--output-dir", dest="OUTPUT_DIR", help="folder for log, checkpoints and results.json")
    add("--resume", dest="RESUME", help="folder of an unfinished run to go on from (default: the output folder)")
    add("--seed", dest="SEED", type=int, help="a number from 0 makes the run repeatable")
    add("--source-domains", dest=SOURCES, nargs="+", help="default: all domains but the targets")
    add("--target-domains", dest=TARGETS, nargs="+", help="full names or one-letter codes")
    add("--transforms", dest=TRANSFORMS, nargs="+", help="training transforms, instead of the config's")
    add("--config-file", default="", help="config of the method, configs/trainers/<Trainer>/*.yaml")
    add("--dataset-config-file", default="", help="config of the data set, configs/datasets/*.yaml")
    add("--trainer", dest="TRAINER.NAME", default="", help=", ".join(method.trainer for method in METHODS))
    add(
        "--backbone", dest="MODEL.BACKBONE.NAME", help='a CLIP: "RN50", "ViT-B/16", ..., or a name of docs/backbones.md'
    )
    add("--head", dest="MODEL.HEAD.NAME", help=argparse.SUPPRESS)
    add("--eval-only", action="store_true", help="test the model in --model-dir")
    add("--model-dir", default="", help="folder of the trained run for --eval-only")
    add("--load-epoch", type=int, help="epoch of the checkpoint (default: the best)")
    add("--no-train", action="store_true", help="build everything, but do not train")
    add("--no-feature-cache", action="store_true", help="do not cache image features on disk")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys, such as OPTIM.MAX_EPOCH 10")
    args = parser.parse_args(argv)
    # argparse adds KEY VALUE pairs that follow a list to that list.
    for key in (SOURCES, TARGETS, TRANSFORMS):
        words, opts = split_at_key(getattr(args, key) or [])
        setattr(args, key, words)
        args.opts = opts + args.opts
    return args


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a command line; raises UserError for a wrong config file, key or value.

    `args.note` becomes a note on a config file that is missing or of SPG's authors, or "".
    """
    from trainers.config import apply_settings, default_cfg, merge_file, merge_method_file, set_key

    cfg, flags = default_cfg(), vars(args)
    args.note = "Note: without --config-file, Dassl's defaults apply. Methods have their own in configs/trainers/."
    if args.dataset_config_file:
        merge_file(cfg, args.dataset_config_file)
    if args.config_file:
        args.note = merge_method_file(cfg, args.config_file, flags["TRAINER.NAME"])
        cfg.TRAINER.CONFIG = os.path.splitext(os.path.basename(args.config_file))[0]
    for key, value in flags.items():
        if key.isupper() and value not in (None, "", []):
            set_key(cfg, key, value)
    cfg.TRAINER.FEATURES.CACHE &= not args.no_feature_cache
    apply_settings(cfg, args.opts)
    cfg.DATALOADER.NUM_WORKERS = loader_workers(cfg.DATALOADER.NUM_WORKERS)
    cfg.freeze()
    return cfg


def check_request(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Raise UserError if a trainer, data set, backbone, domain or GPU is missing or unknown."""
    import torch
    from dassl.data.datasets import DATASET_REGISTRY
    from dassl.engine import TRAINER_REGISTRY

    for section, registry in {"TRAINER": TRAINER_REGISTRY, "DATASET": DATASET_REGISTRY}.items():
        if (name := cfg[section].NAME) not in (accepted := registry.registered_names()):
            found = f"unknown name {name!r}" if name else "no name is given"
            raise UserError(f"{section}.NAME: {found}. Accepted: {', '.join(sorted(accepted))}.")
    if not cfg.MODEL.BACKBONE.NAME:
        raise UserError('MODEL.BACKBONE.NAME: no backbone is named. Pass --backbone "ViT-B/16" or the file of a CLIP.')
    dataset, root = DATASET_REGISTRY.get(cfg.DATASET.NAME), cfg.DATASET.ROOT
    # The domains of a folder of images are unknown once it is gone.
    if hasattr(dataset, "resolve_domains") and (dataset.domains or os.path.isdir(root)):
        dataset.resolve_domains(root, cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS)
    # By default, CUDA is used if it is there, so the config does not show a request.
    asked = dict(zip(args.opts[::2], args.opts[1::2], strict=False)).get("USE_CUDA", "False")
    if asked.lower() in ("true", "1") and not torch.cuda.is_available():
        problem = f"USE_CUDA True asks for a GPU, but torch {torch.__version__} finds no CUDA device."
        raise UserError(f"{problem} Leave it out to run on the CPU, or install a PyTorch build for your GPU.")


def is_done(args: argparse.Namespace, cfg: CfgNode) -> bool:
    """Whether the output folder holds this run, finished; raises UserError if it holds another run."""
    from trainers.base.run_record import check_finished

    folder, model = cfg.OUTPUT_DIR, os.path.abspath(args.model_dir) if args.eval_only else "its own"
    finished, record = is_finished(folder, tested=not cfg.TEST.NO_TEST), read_run_record(folder)
    if args.eval_only and (finished or (record and record.identity)):
        is_same = record is not None and record.identity.get("tested model") == model
        if is_same and finished:
            is_same = read_results(os.path.join(folder, RESULTS_FILE))["load_epoch"] == args.load_epoch
        if not is_same:
            state = "the results of another run" if finished else "an unfinished run"
            raise UserError(f"{folder} holds {state}; name another --output-dir for this test.")
    if finished:
        check_finished(folder, cfg, model)
    return finished


def run(args: argparse.Namespace) -> None:
    cfg = setup_cfg(args)
    folder = cfg.OUTPUT_DIR
    if os.path.isfile(folder):
        raise UserError(f"--output-dir {folder} is a file; name a folder.")
    if args.eval_only and not args.model_dir:
        raise UserError("--eval-only needs --model-dir, the folder of the trained run to test.")
    import trainers.all  # noqa: F401 (registers trainers and data sets)

    check_request(args, cfg)
    if args.eval_only and os.path.realpath(folder) == os.path.realpath(args.model_dir):
        # This test writes no records, so it may share the folder of its model.
        run_trainer(args, cfg, has_records=False)
    elif is_done(args, cfg):
        print(f"{folder} holds a finished run; skipped. Name another --output-dir to run again.")
    else:
        make_output_folder(folder)
        with run_lock(folder):
            if is_done(args, cfg):
                print(f"{folder}: skipped, finished by another process.")
            else:
                run_trainer(args, cfg)


def run_trainer(args: argparse.Namespace, cfg: CfgNode, has_records: bool = True) -> None:
    from dassl.engine import build_trainer
    from dassl.utils import set_random_seed, setup_logger

    if cfg.SEED >= 0:
        make_deterministic()
        set_random_seed(cfg.SEED)
    setup_logger(cfg.OUTPUT_DIR)
    escape_unprintable(getattr(sys.stdout, "file", None))  # the log of an installed Dassl
    if args.note:
        print(args.note)
    trainer = build_trainer(cfg)
    if args.eval_only:
        trainer.test_run(args.model_dir, args.load_epoch)
        if has_records:
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
    except (Interrupted, KeyboardInterrupt, OSError, RuntimeError, MemoryError, UnicodeEncodeError) as error:
        if received := interruption():  # a loader worker may have received the signal, too, and ended first
            return received.exit_code, f"Interrupted by {received}. {RESUMES}"
        if isinstance(error, KeyboardInterrupt):
            return 130, f"Interrupted. {RESUMES}"
        if (message := explain(error)) is None:
            raise
        return 1, message
    return 0, ""


if __name__ == "__main__":
    sys.exit(main())
