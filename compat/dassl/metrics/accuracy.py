"""Accuracy of a batch."""


def compute_accuracy(output, target, topk=(1,)):
    """Return the accuracy for each k: the share of items whose label is among the k highest scores.

    Args:
        output: scores (B, C), or a tuple or list whose first entry they are.
        target: labels (B,).
        topk (tuple of int): the values of k.

    Returns:
        list of 1-element tensors, in percent.
    """
    if isinstance(output, (tuple, list)):
        output = output[0]
    ranked = output.topk(max(topk), dim=1).indices  # (B, max k)
    hits = ranked == target.view(-1, 1)
    return [hits[:, :k].any(dim=1).float().mean().mul(100).view(1) for k in topk]
