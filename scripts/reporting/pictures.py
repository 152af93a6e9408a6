"""The report's pictures: accuracy, curves, confusion, contexts, variability. Each function returns a Figure."""

import base64
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from common.files import atomic_write
from common.run.contexts import Contexts
from scripts.reporting.tables import AVERAGE, Results, Table, columns_of, method_name
from scripts.reporting.variability import Spread

WIDTH = 5.2  # inches: text stays readable where a phone shows the whole picture
DPI = 160
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # names are names
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "svg.hashsalt": "spg",  # the same file each time
    "svg.fonttype": "none",
}
MARKERS = "osD^vP*X"

Drawing = TypeVar("Drawing", bound=Callable)


def _styled(draw: Drawing) -> Drawing:
    """Decorator: draw in STYLE."""
    context: Any = plt.rc_context(STYLE)  # a decorator, too, which its annotation leaves out
    return context(draw)


def colours(n: int) -> list:
    """n colours that are told apart."""
    palette = matplotlib.color_sequences["tab10" if n <= 10 else "tab20"]
    return [palette[i % len(palette)] for i in range(n)]


def file_name(text: str) -> str:
    """Text as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()[:100]


@_styled
def save_picture(figure: Figure, folder: Path, name: str) -> str:
    """Write <folder>/<name>.png and .svg, close the figure and return the PNG in base64."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI, bbox_inches="tight")
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    for suffix, content in (("png", png), ("svg", svg)):
        with atomic_write(folder / f"{name}.{suffix}") as handle:
            handle.write(content.getvalue())
    return base64.b64encode(png.getvalue()).decode()


def shortened(text: str, length: int = 24) -> str:
    """Text of bounded length."""
    return text if len(text) <= length else text[: length - 1] + "…"


def legend_above(axes: Axes, n: int) -> None:
    """A legend over the axes for n entries, in as many columns as fit the width."""
    longest = max((len(text) for text in axes.get_legend_handles_labels()[1]), default=1)
    columns = max(1, min(n, 56 // (longest + 6)))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=columns, borderaxespad=0, columnspacing=1.2)


@_styled
def accuracy_picture(table: Table) -> Figure:
    """Accuracy of each method in each column: mean and standard deviation over seeds."""
    columns = [*table.columns, AVERAGE] if len(table.columns) > 1 else table.columns
    methods = list(table.rows)
    step = 0.8 / len(methods)
    figure, axes = plt.subplots(figsize=(WIDTH, 0.9 + len(columns) * max(0.34, 0.17 * len(methods))))
    for k, (method, colour) in enumerate(zip(methods, colours(len(methods)), strict=True)):
        cells = [(i, table.rows[method][column]) for i, column in enumerate(columns)]
        cells = [(i, cell) for i, cell in cells if cell.values]
        axes.errorbar(
            np.array([cell.mean for _, cell in cells], float),
            [i - 0.4 + (k + 0.5) * step for i, _ in cells],
            xerr=[cell.std or 0 for _, cell in cells],
            fmt=MARKERS[k % len(MARKERS)],
            color=colour,
            markersize=5,
            capsize=2.5,
            label=shortened(method),
        )
    for i in range(1, len(columns)):
        axes.axhline(i - 0.5, color="#bbbbbb", linewidth=0.8)
    axes.grid(axis="y", visible=False)
    axes.set_yticks(
        range(len(columns)), [shortened(table.average_name if column == AVERAGE else column) for column in columns]
    )
    axes.set_ylim(len(columns) - 0.5, -0.5)
    axes.set_xlabel("accuracy (%)")
    legend_above(axes, len(methods))
    return figure


@_styled
def learning_picture(runs: Sequence[Results]) -> Figure | None:
    """Validation accuracy and losses by epoch of one method's runs; None where it had no two epochs to be a curve.

    Accuracy: a line for each column, the mean over its seeds. Losses: the mean over all runs, one line each.
    """
    by_column: dict[str, list] = {}
    losses: dict[str, list] = {}
    for run in runs:
        if run.get("val_history"):
            name = (
                ", ".join(run["source_domains"]) if run["protocol"] == "single-source" else next(iter(columns_of(run)))
            )
            by_column.setdefault(name, []).append(run["val_history"])
        names = {name for epoch in run.get("loss_history") or [] for name in epoch}
        for name in names:
            losses.setdefault(name, []).append([epoch.get(name) for epoch in run["loss_history"]])
    accuracy = losses.pop("acc", [])
    parts = [part for part in (by_column or accuracy, losses) if part]
    curves = [*by_column.values(), accuracy, *losses.values()]
    if not any(len(curve) > 1 for of_runs in curves for curve in of_runs):
        return None
    figure, grid = plt.subplots(
        len(parts), 1, figsize=(WIDTH, 2.5 * len(parts)), sharex=True, squeeze=False, layout="constrained"
    )
    axes = list(grid[:, 0])
    if by_column or accuracy:
        ax = axes.pop(0)
        for (name, histories), colour in zip(sorted(by_column.items()), colours(len(by_column)), strict=True):
            _draw_mean(ax, histories, color=colour, label=shortened(name))
        if accuracy:
            _draw_mean(ax, accuracy, color="black", linestyle=":", label="training batches")
        ax.set_ylabel("accuracy (%)")
        legend_above(ax, len(by_column) + bool(accuracy))
    if losses:
        ax = axes.pop(0)
        for (name, histories), colour in zip(sorted(losses.items()), colours(len(losses)), strict=True):
            _draw_mean(ax, histories, color=colour, label=shortened(name))
        ax.set_ylabel("loss")
        legend_above(ax, len(losses))
    ax.set_xlabel("epoch")
    ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _draw_mean(axes: Axes, histories: Sequence[Sequence[float | None]], **style: Any) -> None:
    """The mean of several histories, of perhaps different lengths, by epoch; gaps where none has a value."""
    length = max(map(len, histories))
    values = np.full((len(histories), length), np.nan)
    for row, history in zip(values, histories, strict=True):
        row[: len(history)] = [np.nan if value is None else value for value in history]
    known = np.isfinite(values)
    sums = np.where(known, values, 0).sum(axis=0)
    means = np.where(known.any(axis=0), sums / np.maximum(known.sum(axis=0), 1), np.nan)
    axes.plot(range(1, length + 1), means, marker="." if length <= 20 else None, linewidth=1.6, **style)


@_styled
def confusion_picture(counts: np.ndarray, classnames: Sequence[str]) -> Figure:
    """Confusion matrix: of each class's images (rows), the share (%) that was taken for each class (columns)."""
    n = len(classnames)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(WIDTH, WIDTH), layout="constrained")
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    size = 9 if n <= 12 else 6
    names = [shortened(name, 18) for name in classnames]
    axes.set_xticks(range(n), names, rotation=90, fontsize=size)
    axes.set_yticks(range(n), names, fontsize=size)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    if n <= 12:
        for i, j in np.ndindex(n, n):
            if shares[i, j] >= 0.5:
                colour = "white" if shares[i, j] > 55 else "black"
                axes.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.7, label="% of the class's images")
    return figure


@_styled
def contexts_picture(contexts: Contexts) -> Figure | None:
    """PCA of generated contexts and prompt labels together, coloured by domain; None for fewer than three."""
    points = np.concatenate([contexts.contexts, contexts.labels]).astype(np.float32)
    points = points.reshape(len(points), -1)
    if len(points) < 3 or points.shape[1] < 2:
        return None
    pca = PCA(2, random_state=0)
    places = pca.fit_transform(points)
    generated, labels = places[: len(contexts.contexts)], places[len(contexts.contexts) :]
    domains = sorted({*contexts.domains.tolist(), *contexts.label_domains.tolist()})
    tested = set(contexts.domains[contexts.splits == "test"].tolist())
    figure, axes = plt.subplots(figsize=(WIDTH, 4.2))
    for domain, colour in zip(domains, colours(len(domains)), strict=True):
        mine = contexts.domains == domain
        name = shortened(domain) + (" (target)" if domain in tested else "")
        marker = "^" if domain in tested else "o"
        x, y = generated[mine].T
        axes.scatter(x, y, s=14, alpha=0.5, color=colour, marker=marker, linewidths=0, label=name)
    known = [domain for domain in domains if domain in contexts.label_domains]
    # The largest first, so that those at one place are all seen.
    for domain, size in zip(known, np.geomspace(600, 60, len(known)), strict=True):
        mine, colour = contexts.label_domains == domain, colours(len(domains))[domains.index(domain)]
        x, y = labels[mine].T
        axes.scatter(x, y, s=size, color=colour, marker="*", linewidths=0, zorder=3)
    if len(labels):
        axes.scatter([], [], color="black", marker="*", label="prompt label")
    shares = 100 * pca.explained_variance_ratio_
    axes.set_xlabel(f"first component ({shares[0]:.0f} % of the variance)")
    axes.set_ylabel(f"second component ({shares[1]:.0f} %)")
    legend_above(axes, len(domains) + 1)
    legend: Any = axes.get_legend()  # with handles as scatter makes them
    for handle in legend.legend_handles:
        handle.set_alpha(1)
        handle.set_sizes([50])
    return figure


def runs_by_method(table: Table) -> dict[str, list[Results]]:
    """Dict from each method of a table to its runs."""
    return {method: [run for run in table.runs if method_name(run) == method] for method in table.rows}


@_styled
def variability_picture(rows: Sequence[tuple[str, Spread, dict[int, float]]]) -> Figure:
    """How the accuracy of some runs depends on the noise of their prompts: a line for each run and domain.

    All in points from the mean over single draws: those draws' range and standard deviation, and averages of n draws.

    Args:
        rows: (label, Spread of single draws, dict from n to the accuracy of n averaged).
    """
    counts = sorted({n for _, _, averages in rows for n in averages if n > 1})
    figure, axes = plt.subplots(figsize=(WIDTH, 1.1 + 0.32 * len(rows)))
    places = np.arange(len(rows))
    means, low, high, std = np.array([(found.mean, found.min, found.max, found.std) for _, found, _ in rows]).T
    axes.hlines(places, low - means, high - means, color="#888888", linewidth=1.2, label="single draws: range")
    axes.hlines(places, -std, std, color="#bbbbbb", linewidth=7, label="their std")
    # From light to dark and small to large, so that they are told apart where they coincide.
    for k, n in enumerate(counts):
        having = [i for i, (_, _, averages) in enumerate(rows) if n in averages]
        axes.scatter(
            [rows[i][2][n] - means[i] for i in having],
            having,
            s=90 - 70 * k / max(1, len(counts) - 1),
            color=matplotlib.colormaps["viridis_r"]((k + 1) / (len(counts) + 0.5)),
            edgecolors="white",
            linewidths=0.5,
            label=f"{n} averaged",
            zorder=3 + k,
        )
    axes.axvline(0, color="#888888", linewidth=0.8, zorder=0.5)
    axes.grid(axis="y", visible=False)
    axes.set_yticks(places, [f"{shortened(label, 40)}, {found.mean:.1f} %" for label, found, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("points from the mean of single draws")
    right = axes.secondary_yaxis("right")
    right.set_yticks(places, [f"{found.agreement:.0f} %" for _, found, _ in rows])
    right.tick_params(length=0)
    right.spines[:].set_visible(False)
    axes.text(1.02, -0.6, "agree", transform=axes.get_yaxis_transform(), va="bottom", fontsize=9)
    place = (0, 1.01 + 0.25 / len(rows))
    axes.legend(loc="lower left", bbox_to_anchor=place, ncols=3, borderaxespad=0, columnspacing=1.2)
    return figure
