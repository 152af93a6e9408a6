"""Figures of the report: accuracy, learning curves, confusion, contexts."""

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.decomposition import PCA
from sklearn.metrics import ConfusionMatrixDisplay

from common.files import atomic_write
from common.image_results import Contexts
from scripts.reporting.tables import Table

WIDTH = 5.2  # inches: text is readable on the width of a phone
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # names may contain $
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "svg.hashsalt": "spg",  # equal figures are equal files
    "svg.fonttype": "none",
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
}
plt.rcParams.update(STYLE)
MARKERS = "osD^vP*X"


def save_figure(figure: Figure, folder: Path, name: str) -> str:
    """Write <folder>/<name>.png and .svg, close the figure, and return the PNG in base64."""
    for suffix in ("svg", "png"):
        content = io.BytesIO()
        figure.savefig(content, format=suffix, metadata={"Date": None})
        with atomic_write(folder / f"{name}.{suffix}") as handle:
            handle.write(content.getvalue())
    plt.close(figure)
    return base64.b64encode(content.getvalue()).decode()


def shorten(text: str, length: int = 24) -> str:
    """Text of at most `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def add_legend(axes: Axes) -> None:
    """Add a legend above the axes, in as many columns as fit."""
    labels = axes.get_legend_handles_labels()[1]
    columns = max(1, min(len(labels), 56 // (max(map(len, labels), default=1) + 6)))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=columns, borderaxespad=0, columnspacing=1.2)


def draw_accuracy(table: Table) -> Figure:
    """Accuracy of each method in each column: mean and standard deviation over seeds."""
    columns = [*table.columns, table.average] if len(table.columns) > 1 else table.columns
    methods = list(table.methods.index)
    figure, axes = plt.subplots(figsize=(WIDTH, 0.9 + len(columns) * max(0.34, 0.17 * len(methods))))
    for k, method in enumerate(methods):
        cells = table.cells.loc[method].loc[columns]
        axes.errorbar(
            cells["mean"],
            np.arange(len(columns)) - 0.4 + (k + 0.5) * 0.8 / len(methods),
            xerr=cells["std"].fillna(0),
            fmt=MARKERS[k % len(MARKERS)],
            color=f"C{k}",
            markersize=5,
            capsize=2.5,
            label=shorten(method),
        )
    for i in range(1, len(columns)):
        axes.axhline(i - 0.5, color="#bbbbbb", linewidth=0.8)
    axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(columns)), list(map(shorten, columns)))
    axes.set_ylim(len(columns) - 0.5, -0.5)
    axes.set_xlabel("accuracy (%)")
    add_legend(axes)
    return figure


def mean_by_epoch(histories: Iterable[Any]) -> pd.DataFrame:
    """The mean of histories, which may have different lengths, by epoch (from 1)."""
    frames = [pd.DataFrame(history, dtype=float) for history in histories]
    found = pd.concat(frames).groupby(level=0).mean() if frames else pd.DataFrame()
    return found.set_axis(found.index + 1)


def draw_learning(runs: pd.DataFrame) -> Figure | None:
    """Validation accuracy by target and training losses, as means over runs; None if no run has two epochs."""
    validated = runs[runs["val_history"].astype(bool)].groupby("targets")["val_history"]
    curves = [mean_by_epoch({name: one} for one in histories) for name, histories in validated]
    losses = mean_by_epoch(history for history in runs["loss_history"] if history)
    if "acc" in losses:
        curves.append(losses.pop("acc").to_frame("training batches"))
    accuracy = pd.concat(curves, axis=1) if curves else pd.DataFrame()
    titles = {"validation accuracy (%), by target": accuracy, "mean training loss": losses}
    parts = {title: part for title, part in titles.items() if not part.empty}
    if max(map(len, parts.values()), default=0) < 2:
        return None
    size = (WIDTH, 2.5 * len(parts))
    figure, grid = plt.subplots(len(parts), 1, figsize=size, sharex=True, squeeze=False, layout="constrained")
    for axes, (title, part) in zip(grid[:, 0], parts.items(), strict=True):
        part = part.rename(columns=shorten)
        marker = "." if len(part) <= 20 else None
        part.plot(ax=axes, xlabel="epoch", ylabel=title, marker=marker, style={"training batches": "k:"})
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        add_legend(axes)
    return figure


def draw_confusion(counts: pd.DataFrame) -> Figure:
    """Confusion matrix: the share (%) of the images of each class (rows) with each prediction (columns)."""
    n, numbers = len(counts), counts.to_numpy()
    shares = 100 * numbers / np.maximum(numbers.sum(axis=1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(WIDTH, WIDTH), layout="constrained")
    matrix = ConfusionMatrixDisplay(shares, display_labels=[shorten(name, 18) for name in counts])
    limits = {"vmin": 0, "vmax": 100}
    matrix.plot(
        include_values=n <= 12, cmap="Blues", xticks_rotation="vertical", values_format=".0f", ax=axes, im_kw=limits
    )
    axes.tick_params(labelsize=9 if n <= 12 else 6)
    axes.grid(visible=False)
    axes.set(xlabel="prediction", ylabel="class", title="% of the images of each class")
    return figure


def draw_contexts(contexts: Contexts) -> Figure | None:
    """Two principal components of generated contexts and prompt labels, by domain; None for fewer than three."""
    points = np.concatenate([contexts.contexts, contexts.labels]).astype(np.float32)
    points = points.reshape(len(points), -1)
    if len(points) < 3 or points.shape[1] < 2:
        return None
    pca = PCA(2, random_state=0)
    generated, labels = np.split(pca.fit_transform(points), [len(contexts.contexts)])
    domains = sorted({*contexts.domains.tolist(), *contexts.label_domains.tolist()})
    targets = set(contexts.domains[contexts.splits == "test"].tolist())
    figure, axes = plt.subplots(figsize=(WIDTH, 4.2))
    for k, domain in enumerate(domains):
        marker, name = ("^", f"{shorten(domain)} (target)") if domain in targets else ("o", shorten(domain))
        own, label = generated[contexts.domains == domain], labels[contexts.label_domains == domain]
        axes.scatter(own[:, 0], own[:, 1], s=20, alpha=0.6, color=f"C{k}", marker=marker, linewidths=0, label=name)
        axes.scatter(label[:, 0], label[:, 1], s=200, color=f"C{k}", marker="*", edgecolors="black", zorder=3)
    axes.scatter([], [], s=100, color="white", marker="*", edgecolors="black", label="prompt label")
    shares = 100 * pca.explained_variance_ratio_
    axes.set_xlabel(f"first component ({shares[0]:.0f} % of the variance)")
    axes.set_ylabel(f"second component ({shares[1]:.0f} %)")
    add_legend(axes)
    return figure
