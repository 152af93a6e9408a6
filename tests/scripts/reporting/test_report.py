"""The report: data of its figures, the page, and the page in a real browser."""

import contextlib
import html
import html.parser
import io
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from made_contexts import DOMAINS, some_contexts
from made_results import RESULT, frame
from PIL import Image
from waiting import MINUTES

from common.files import write_json
from common.image_results import accuracy_by_domain, read_contexts, write_contexts, write_predictions
from common.run import write_results
from scripts.launching.jobs import Job
from scripts.launching.local import Outcome, save_failure
from scripts.launching.status import save_plan
from scripts.report import main
from scripts.reporting import figures
from scripts.reporting.load import load_results
from scripts.reporting.page import write_report
from scripts.reporting.predictions import (
    most_often_wrong,
)
from scripts.reporting.published import PaperResult
from scripts.reporting.tables import make_tables

CLASSES = ["cat & <b>dog</b>", "x<y", "$\\alpha_"]


def rows(domain, labels, predictions):
    """Rows of predictions for images 0.png, 1.png ..."""
    found = [(CLASSES[label], CLASSES[predicted]) for label, predicted in zip(labels, predictions, strict=True)]
    shared = {"domain": domain, "confidence": 0.5}
    return [{"path": f"images/{i}.png", "label": a, "prediction": b, **shared} for i, (a, b) in enumerate(found)]


def write_run(folder, trainer, target, seed, predictions):
    """Write a handmade finished run on six images."""
    of_run = rows(target, [0, 0, 1, 1, 2, 2], predictions)
    by_domain = accuracy_by_domain(of_run)
    result = {"trainer": trainer, "config": "", "dataset": "P<A>CS", "seed": seed, "versions": {"torch": "2.<4>"}}
    result |= {"source_domains": [domain for domain in DOMAINS if domain != target], "target_domains": [target]}
    result |= {"accuracy": by_domain[target], "accuracy_by_domain": by_domain, "classnames": CLASSES}
    result |= {"accuracy_by_class": {CLASSES[0]: 10.0 * seed, CLASSES[1]: 87.5, CLASSES[2]: None}}
    if trainer == "ZeroshotCLIP":
        result |= {"selection": None}
    else:
        losses = [{"loss": 1.0, "acc": 40.0}, {"loss": 0.5, "acc": 70.0}]
        result |= {"val_history": [50.0, 60.0 + seed], "loss_history": losses}
    write_predictions(folder, of_run)
    (folder / "config.yaml").write_text(f"DATASET:\n  ROOT: {folder.parents[1] / 'data'}\nNOTE: </pre><script>\n")
    write_results(folder, {**RESULT, **result})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two methods, two targets, two seeds; pictures of the first images."""
    root = tmp_path_factory.mktemp("report")
    for trainer in ("SPG", "ZeroshotCLIP"):
        for target in DOMAINS:
            for seed in (1, 2):
                folder = root / "out" / f"{trainer}-{DOMAINS.index(target)}" / f"seed{seed}"
                predicted = [0, 1, 1, 1, 2, 2 if seed == 1 else 0] if trainer == "SPG" else [0, 1, 1, 0, 2, 2]
                write_run(folder, trainer, target, seed, predicted)
                if trainer == "SPG":
                    write_contexts(folder, some_contexts(seed))
    spread = {"mean": 50.1, "std": 0.5, "min": 49.0, "max": 51.0, "agreement": 98.72}
    measured = {"draws": 8, "by_domain": {"art": spread}, "averaged": {1: {"art": 50.0}, 16: {"art": 52.5}}}
    write_json(root / "out/SPG-0/seed1/variability.json", measured)
    (root / "out" / "data" / "images").mkdir(parents=True)
    for i in (0, 1):
        Image.new("RGB", (300, 200), (200, 30, 30)).save(root / "out" / "data" / "images" / f"{i}.png")
    return root / "out"


NAMES = {"method": "<i>SPG</i>", "dataset": "P<A>CS", "backbone": "RN50", "protocol": "multi-source"}
PAPER = PaperResult(**NAMES, accuracy={"art": 99.0, "average": 92.8}, source="A & B")


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    """The report page of these runs, and its printed lines."""
    out = tmp_path_factory.mktemp("page") / "all of it.html"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        write_report(make_tables(load_results([runs]), "ZeroshotCLIP", published=[PAPER]), [runs], out)
    return out, printed.getvalue().splitlines()


# ---- contexts ----


def test_run_saves_contexts_and_labels_of_its_sources(finish_run, train, tmp_path):
    finish_run("SPG")
    found = read_contexts(tmp_path / "run/contexts.npz")
    assert found.label_domains.tolist() == ["blue", "green"]
    assert set(found.domains[found.splits == "val"]) == {"blue", "green"}
    assert found.domains[found.splits == "test"].tolist() == ["red"] * 10
    assert found.contexts.shape[1:] == found.labels.shape[1:]
    assert len(np.unique(found.contexts, axis=0)) == len(found.contexts)  # each image has its own
    assert train("SPG", "red", flags=["--eval-only", "--model-dir", "run", "--output-dir", "tested"]) == 0
    tested = read_contexts(tmp_path / "tested/contexts.npz")
    assert len(tested.labels) == 0 and set(tested.splits) == {"test"}
    np.testing.assert_array_equal(tested.contexts, found.contexts[found.splits == "test"])


# ---- predictions ----


def frame_of(*found):
    """Predictions of runs from (method, rows)."""
    frames = [pd.DataFrame(of_run).assign(method=method, folder=method) for method, of_run in found]
    return pd.concat(frames, ignore_index=True)


def test_most_misclassified_images_equal_hand_computation():
    found = frame_of(
        ("SPG", rows("art", [0, 0, 1], [1, 0, 0])),
        ("SPG", rows("art", [0, 0, 1], [1, 0, 1])),
        ("CoOp", rows("art", [0, 0, 1], [2, 0, 1])),
    )
    first, second = most_often_wrong(found, 5).to_dict("records")
    assert (first["path"], first["wrong"], first["tested"]) == ("images/0.png", 3, 3)
    assert first["answers"] == {"SPG": f"{CLASSES[1]} 2/2", "CoOp": f"{CLASSES[2]} 1/1"}
    assert (second["path"], second["wrong"], second["tested"]) == ("images/2.png", 1, 3)
    assert len(most_often_wrong(found, 1)) == 1


# ---- pictures ----


def test_figures_are_saved_twice_and_not_empty(report):
    folder = report[0].with_name("all of it_files")
    stems = sorted(path.stem for path in folder.glob("*.png"))
    assert stems == sorted(path.stem for path in folder.glob("*.svg"))
    for kind, n in {"accuracy": 1, "learning": 1, "confusion": 2, "contexts": 2}.items():
        assert sum(f"-{kind}" in stem for stem in stems) == n
    for stem in stems:
        assert len(Image.open(folder / f"{stem}.png").convert("RGB").getcolors(10**6)) > 10
        assert "<svg" in (folder / f"{stem}.svg").read_text(encoding="utf-8")


def test_learning_curves_are_means_over_seeds_of_any_length():
    histories = ([50.0, 60.0], [70.0, 80.0, 90.0])
    runs = [{**RESULT, "val_history": h, "loss_history": [{"loss": 1.0}] * len(h)} for h in histories]
    figure = figures.draw_learning(frame(runs))
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [60.0, 70.0, 90.0])
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), [1.0] * 3)
    figures.plt.close(figure)
    assert figures.draw_learning(frame([RESULT])) is None


# ---- the page ----


class Page(html.parser.HTMLParser):
    """Text, tags and references."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.references, self.alts, self.text = [], [], [], ""
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.references += [values[name] for name in ("src", "href", "srcset", "data", "action") if name in values]
        if tag == "img":
            self.alts.append(values.get("alt"))

    def handle_data(self, data):
        self.text += data


def test_report_page_has_every_section_and_escapes_names(report):
    out, printed = report
    source = out.read_text(encoding="utf-8")
    page = Page(source)
    assert all(reference.startswith(("data:image/", "#")) for reference in page.references)  # one file
    assert "url(" not in source and "@import" not in source
    assert all(page.alts) and len(page.alts) == 6 + 2  # pictures, thumbnails
    assert not {"i", "script", "link", "iframe"} & set(page.tags)  # names that look like tags are text
    for text in (
        *(*CLASSES, *DOMAINS, "P<A>CS", "75.0 ± 11.8", "Difference to ZeroshotCLIP", "+8.3", "2.<4>"),
        *("NOTE: </pre><script>", "SPG: a prediction also depends on noise, drawn for each image."),
        *("Prompt variability", "16 averaged", "52.5", "98.7", "wrong in 4 of 4 runs", "images/1.png"),
        *("<i>SPG</i> †", "as reported in A & B."),
    ):
        assert text in page.text
    assert "ZeroshotCLIP: a prediction" not in page.text
    by_class = page.text[page.text.index("Accuracy by class: ") : page.text.index("Calibration")].split()
    assert [by_class.count(mean) for mean in ("15.0", "87.5", "-")] == [2, 2, 2]
    published = source.partition('<tr class="published">')[2].partition("</tr>")[0]
    assert "92.8" in published and "<b>" not in published and source.count("92.8") == 1
    assert printed[:2] == [f"Report: {out}", "Left out:"]
    assert "images most often wrong have no readable file" in printed[2] and printed[2].strip() in page.text


def test_missing_and_damaged_files_are_listed(runs, tmp_path, capsys):
    folder = tmp_path / "runs"
    shutil.copytree(runs / "SPG-0" / "seed1", folder / "a")
    shutil.copytree(runs / "SPG-0" / "seed2", folder / "b")
    (folder / "a" / "predictions.csv").unlink()
    (folder / "a" / "config.yaml").unlink()
    (folder / "a" / "variability.json").write_text('{"draws": 3}')
    (folder / "b" / "predictions.csv").write_text("broken")
    (folder / "a" / "contexts.npz").write_bytes(b"broken")
    assert main([str(folder), "--out", str(tmp_path / "r.html")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"Report: {tmp_path / 'r.html'}\nLeft out:\n")
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    for name in ("a/predictions.csv", "a/config.yaml", "a/variability.json", "b/predictions.csv", "a/contexts.npz"):
        assert str(folder / name) in printed and str(folder / name) in page.text


def test_unfinished_runs_are_listed_before_the_tables(runs, tmp_path):
    shutil.copytree(runs / "SPG-0", tmp_path / "output/SPG/RN50/default/art")
    base, out = tmp_path / "output/CoOp/RN50/default", tmp_path / "r.html"
    started = [base / f"{run}/seed{seed}" for run in ("art", "photo") for seed in (1, 2)]
    save_plan([Job("title", (), folder) for folder in (tmp_path / "output/SPG/RN50/default/art/seed1", *started)])
    save_failure(base / "art/seed2", Outcome(1, "Error: <no> images"))
    assert main([str(tmp_path / "output"), "--out", str(out)]) == 0
    page = Page(out.read_text(encoding="utf-8"))
    listed = page.text[page.text.index("Not finished") : page.text.index("Accuracy by target")]
    assert f"1 failed in {base}: art/seed2: exit code 1: Error: <no> images" in listed
    assert f"3 waiting in {base}: art/seed1, photo/seed1, photo/seed2" in listed
    assert "SPG/RN50" not in listed


def test_report_with_mistakes_prints_one_message(runs, tmp_path, capsys):
    (tmp_path / "file").touch()
    for words, message in (
        ([tmp_path, "--out", tmp_path / "r.html"], "no finished run"),
        ([runs, "--baseline", "CoOp", "--out", tmp_path / "r.html"], "--baseline CoOp: no run is of this method"),
        ([runs / "SPG-0", "--out", tmp_path / "file/r.html"], str(tmp_path / "file")),
    ):
        assert main(list(map(str, words))) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


# ---- in a browser ----


@pytest.mark.parametrize(("width", "height"), [(1280, 1600), (390, 2000)])
def test_browser_draws_the_report_page(report, tmp_path, width, height):
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs chromium, chromium-browser or google-chrome")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path}"]
    flags += [f"--screenshot={tmp_path}/shot.png", f"--window-size={width},{height}", report[0].as_uri()]
    subprocess.run([found, *flags], capture_output=True, timeout=MINUTES, check=True)
    image = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB"))
    is_drawn = (image != 255).any(axis=2)
    assert image.shape[:2] == (height, width)
    assert all(third.any() for third in np.array_split(is_drawn, 3))
    assert not is_drawn[:, -3:].any()  # nothing runs out of the page at the right
