"""Encoding images for runs to come, each split by itself: what `train.py --encode` does."""

from collections.abc import Sequence
from typing import Any

from common.errors import UserError
from trainers.modules.features import Shard

SPLITS = ("views", "val", "test")  # what images are encoded of; "views": TRAIN_VIEWS of each training image


def encode_splits(trainer: Any, splits: Sequence[str], shard: Shard | None = None) -> None:
    """Encode images for runs to come, as each of them would, and keep their features in the cache.

    Args:
        trainer: of such a run.
        splits: some of SPLITS.
        shard: which part of each domain's; None: all of it.

    Raises:
        UserError: there is no cache.
    """
    features, batch_size = trainer.cfg.TRAINER.FEATURES, trainer.cfg.DATALOADER.TEST.BATCH_SIZE
    if trainer.IMAGE_TOWER_LEARNS or not features.CACHE:
        why = "TRAINER.FEATURES.CACHE is False" if not features.CACHE else "its image tower learns"
        raise UserError(f"--encode has no use for {trainer.cfg.TRAINER.NAME}: {why}, so no features are kept.")
    if "views" in splits and not features.TRAIN_VIEWS:
        raise UserError("--encode names views, but TRAINER.FEATURES.TRAIN_VIEWS is 0: set how many of each image.")
    trainer.restore_threads(None)
    for split in splits:
        loader = {"views": trainer.train_loader_x, "val": trainer.val_loader, "test": trainer.test_loader}[split]
        if loader is None:
            continue  # the domain is too small to have one
        if split == "views":
            how = loader.dataset.dataset, features.TRAIN_VIEWS, batch_size
            if shard is None:
                trainer.image_features.views(*how, trainer.batches)
            else:
                trainer.image_features.keep_shard_of_views(*how, shard)
        elif shard is None:
            trainer.image_features.of_split(loader, split)
        else:
            trainer.image_features.keep_shard(loader, split, shard)
