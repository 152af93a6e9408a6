"""Running averages of what is printed while training."""

from collections import defaultdict

import torch

__all__ = ["AverageMeter", "MetricMeter"]


class AverageMeter:
    """Latest value and average of a number.

    Args:
        ema (bool): ``avg`` is an exponential moving average (decay 0.9, from 0) instead of the mean.
    """

    def __init__(self, ema=False):
        self.ema = ema
        self.reset()

    def reset(self):
        """Forget everything."""
        self.val = 0
        self.avg = 0
        self.sum = 0
        self.count = 0

    def update(self, val, n=1):
        """Add ``val`` (number or 1-element tensor), itself the average of ``n`` items."""
        if isinstance(val, torch.Tensor):
            val = val.item()
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = 0.9 * self.avg + 0.1 * val if self.ema else self.sum / self.count


class MetricMeter:
    """An :class:`AverageMeter` for each of several named numbers.

    ``str(meter)`` is ``loss 0.5012 (0.7310) acc 87.5000 (80.0000)``: latest value, average.

    Args:
        delimiter (str): what stands between the entries.
    """

    def __init__(self, delimiter=" "):
        self.meters = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict):
        """Add one value for each name; ``None`` adds nothing.

        Args:
            input_dict (dict): from names to numbers or 1-element tensors.

        Raises:
            TypeError: ``input_dict`` is not a dict.
        """
        if input_dict is None:
            return
        if not isinstance(input_dict, dict):
            raise TypeError(f"expected a dict from names to numbers, got {type(input_dict).__name__}")
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def __str__(self):
        return self.delimiter.join(f"{name} {m.val:.4f} ({m.avg:.4f})" for name, m in self.meters.items())
