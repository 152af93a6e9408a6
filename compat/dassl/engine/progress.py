"""The lines that are printed while training."""

import datetime
import time

from dassl.utils.meters import AverageMeter, MetricMeter


class Progress:
    """Times the batches of one epoch, averages what they return and prints a line now and then.

    Args:
        trainer: the trainer, of which ``epoch``, ``max_epoch``, ``batch_idx``, ``num_batches``,
            ``get_current_lr`` and ``write_scalar`` are read.
        print_freq (int): batches between two lines; an epoch with fewer batches prints each.
    """

    def __init__(self, trainer, print_freq):
        self.trainer = trainer
        self.print_freq = print_freq
        self.losses = MetricMeter()
        self.batch_time = AverageMeter()
        self.data_time = AverageMeter()
        self._since = time.time()

    def data_loaded(self):
        """The next batch has been loaded."""
        self.data_time.update(time.time() - self._since)

    def batch_done(self, loss_summary):
        """The batch has been trained on, with the numbers ``loss_summary``."""
        trainer = self.trainer
        self.batch_time.update(time.time() - self._since)
        self.losses.update(loss_summary)
        due = (trainer.batch_idx + 1) % self.print_freq == 0
        if due or trainer.num_batches < self.print_freq:
            print(self._line())
        step = trainer.epoch * trainer.num_batches + trainer.batch_idx
        for name, meter in self.losses.meters.items():
            trainer.write_scalar(f"train/{name}", meter.avg, step)
        trainer.write_scalar("train/lr", trainer.get_current_lr(), step)
        self._since = time.time()

    def _line(self):
        trainer = self.trainer
        left = trainer.num_batches - trainer.batch_idx - 1
        left += (trainer.max_epoch - trainer.epoch - 1) * trainer.num_batches
        parts = [
            f"epoch [{trainer.epoch + 1}/{trainer.max_epoch}]",
            f"batch [{trainer.batch_idx + 1}/{trainer.num_batches}]",
            f"time {self.batch_time.val:.3f} ({self.batch_time.avg:.3f})",
            f"data {self.data_time.val:.3f} ({self.data_time.avg:.3f})",
            str(self.losses),
            f"lr {trainer.get_current_lr():.4e}",
            f"eta {datetime.timedelta(seconds=int(self.batch_time.avg * left))}",
        ]
        return " ".join(parts)
