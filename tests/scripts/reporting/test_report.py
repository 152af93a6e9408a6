"""The report: data of its figures, the page, and the page in a real browser."""

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
    count_confusions,
    most_confused,
    most_often_wrong,
)
from scripts.reporting.published import Figures
from scripts.reporting.tables import make_tables

CLASSES = ["cat & <b>dog</b>", "x<y", "$\\alpha_"]


def rows(domain, labels, predictions):
    """Rows of predictions for images 0.png, 1.png ..."""
    return [
        {
            "path": f"images/{i}.png",
            "domain": domain,
            "label": CLASSES[label],
            "prediction": CLASSES[predicted],
            "confidence": 0.5,
        }
        for i, (label, predicted) in enumerate(zip(labels, predictions, strict=True))
    ]


def write_run(folder, trainer, target, seed, predictions, **changes):
    """Write a handmade finished run on six images."""
    of_run = rows(target, [0, 0, 1, 1, 2, 2], predictions)
    by_domain = accuracy_by_domain(of_run)
    learns = trainer != "ZeroshotCLIP"
    result = {
        **RESULT,
        "trainer": trainer,
        "config": "",
        "dataset": "P<A>CS",
        "backbone": "RN50",
        "protocol": "multi-source",
        "source_domains": [domain for domain in DOMAINS if domain != target],
        "target_domains": [target],
        "classnames": CLASSES,
        "selection": "best_val" if learns else None,
        "seed": seed,
        "accuracy": by_domain[target],
        "accuracy_by_domain": by_domain,
        "val_history": [50.0, 60.0 + seed] if learns else [],
        "loss_history": [{"loss": 1.0, "acc": 40.0}, {"loss": 0.5, "acc": 70.0}] if learns else [],
        "accuracy_by_class": {CLASSES[0]: 10.0 * seed, CLASSES[1]: 87.5, CLASSES[2]: None},
        "versions": {"torch": "2.<4>"},
    }
    write_predictions(folder, of_run)
    (folder / "config.yaml").write_text(f"DATASET:\n  ROOT: {folder.parents[1] / 'data'}\nNOTE: </pre><script>\n")
    write_results(folder, {**result, **changes})


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


def make_report(folder, out, baseline="", published=None):
    return write_report(make_tables(load_results([folder]), baseline, published=published), [folder], out)


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    """The report page of these runs, and the lines about missing files."""
    out = tmp_path_factory.mktemp("page") / "all of it.html"
    skipped = make_report(runs, out, "ZeroshotCLIP")
    return out, skipped


# ---- contexts ----


def test_run_saves_contexts_and_labels_of_its_sources(finish_run, train, tmp_path):
    finish_run("SPG")
    found = read_contexts(tmp_path / "run" / "contexts.npz")
    assert found.label_domains.tolist() == ["blue", "green"]
    by_split = dict(zip(found.splits.tolist(), found.domains.tolist(), strict=True))
    assert by_split["test"] == "red" and set(found.domains[found.splits == "val"]) == {"blue", "green"}
    assert (found.splits == "test").sum() == 10
    assert found.contexts.shape[1:] == found.labels.shape[1:]
    assert len(np.unique(found.contexts, axis=0)) == len(found.contexts)  # each image has its own

    assert train("SPG", "red", flags=["--eval-only", "--model-dir", "run", "--output-dir", "tested"]) == 0
    tested = read_contexts(tmp_path / "tested" / "contexts.npz")
    assert len(tested.labels) == 0 and set(tested.splits) == {"test"}
    np.testing.assert_array_equal(tested.contexts, found.contexts[found.splits == "test"])
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "report.html")]) == 0
    assert list((tmp_path / "report_files").glob("*contexts*.svg"))


# ---- predictions ----


def frame_of(*found):
    """Predictions of runs from (method, rows)."""
    frames = [pd.DataFrame(of_run).assign(method=method, folder=method) for method, of_run in found]
    return pd.concat(frames, ignore_index=True)


def test_confusion_equals_hand_computation():
    found = frame_of(("SPG", rows("art", [0, 0, 1, 2], [0, 1, 2, 2])), ("SPG", rows("photo", [0, 1], [1, 1])))
    counts = count_confusions(found, CLASSES)
    assert counts.to_numpy().tolist() == [[1, 2, 0], [0, 1, 1], [0, 0, 1]]
    assert most_confused(counts, 5).to_numpy().tolist() == [
        [CLASSES[0], CLASSES[1], 2, pytest.approx(200 / 3)],
        [CLASSES[1], CLASSES[2], 1, pytest.approx(50)],
    ]


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


def shows_something(png):
    return len(Image.open(png).convert("RGB").getcolors(10**6)) > 10


def test_figures_are_saved_twice_and_not_empty(report):
    out, _ = report
    folder = out.with_name("all of it_files")
    stems = sorted(path.stem for path in folder.glob("*.png"))
    assert stems == sorted(path.stem for path in folder.glob("*.svg"))
    for kind, n in {"accuracy": 1, "learning": 1, "confusion": 2, "contexts": 2}.items():
        assert sum(f"-{kind}" in stem for stem in stems) == n
    for stem in stems:
        assert shows_something(folder / f"{stem}.png")
        assert "<svg" in (folder / f"{stem}.svg").read_text(encoding="utf-8")


def test_learning_curves_are_means_over_seeds_of_any_length():
    histories = ([50.0, 60.0], [70.0, 80.0, 90.0])
    runs = [{**RESULT, "val_history": h, "loss_history": [{"loss": 1.0}] * len(h)} for h in histories]
    figure = figures.draw_learning(frame(runs))
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [60.0, 70.0, 90.0])
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), [1.0] * 3)
    figures.plt.close(figure)
    assert figures.draw_learning(frame([RESULT])) is None
    one_epoch = {**RESULT, "val_history": [70.0], "loss_history": [{"loss": 1.0}]}
    assert figures.draw_learning(frame([one_epoch])) is None


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


def test_report_page_is_one_file(report):
    source = report[0].read_text(encoding="utf-8")
    page = Page(source)
    assert page.references
    assert all(reference.startswith(("data:image/", "#")) for reference in page.references)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert "url(" not in source and "@import" not in source
    assert all(page.alts) and len(page.alts) == 6 + 2  # pictures, thumbnails


def test_report_page_has_every_section_and_escapes_names(report):
    out, skipped = report
    page = Page(out.read_text(encoding="utf-8"))
    assert not {"i", "script"} & set(page.tags)  # names that look like tags are text
    for text in (*CLASSES, *DOMAINS, "P<A>CS", "75.0 ± 11.8", "Difference to ZeroshotCLIP", "+8.3", "2.<4>"):
        assert text in page.text
    assert "NOTE: </pre><script>" in page.text
    assert page.tags.count("details") == 8 + 1  # configs, accuracy by class
    by_class = page.text[page.text.index("Accuracy by class: ") : page.text.index("Calibration")].split()
    assert [by_class.count(mean) for mean in ("15.0", "87.5", "-")] == [2, 2, 2]
    assert "SPG: a prediction also depends on noise, drawn for each image." in page.text
    assert "ZeroshotCLIP: a prediction" not in page.text
    for text in ("Prompt variability", "16 averaged", "52.5", "98.7", "wrong in 4 of 4 runs", "images/1.png"):
        assert text in page.text
    (line,) = skipped
    assert "images most often wrong have no readable file" in line and line in page.text


def test_numbers_from_papers_are_grey_rows(runs, tmp_path):
    names = {"method": "<i>SPG</i>", "dataset": "P<A>CS", "backbone": "RN50", "protocol": "multi-source"}
    paper = Figures(**names, accuracy={"art": 99.0, "average": 92.8}, source="A & B")
    make_report(runs, tmp_path / "report.html", published=[paper])
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    ours, _, theirs = source.partition('<tr class="published">')
    theirs = theirs.partition("</tr>")[0]
    assert "&lt;i&gt;SPG&lt;/i&gt; †" in theirs and "92.8" in theirs and "<b>" not in theirs
    assert "92.8" not in ours and "as reported in A &amp; B." in source
    assert ".published th, .published td { color: #767676; }" in source


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


def test_unfinished_runs_are_listed_before_the_tables(runs, tmp_path, capsys):
    shutil.copytree(runs / "SPG-0", tmp_path / "output/SPG/RN50/default/art")
    base = tmp_path / "output/CoOp/RN50/default"
    started = [base / f"{run}/seed{seed}" for run in ("art", "photo") for seed in (1, 2)]
    folders = [tmp_path / "output/SPG/RN50/default/art/seed1", *started]
    save_plan([Job("title", (), folder) for folder in folders])
    save_failure(base / "art/seed2", Outcome(1, "Error: <no> images"))
    arguments = [
        str(tmp_path / "output"),
        "--out",
        str(tmp_path / "r.html"),
        "--not-run=VPT is left out. It takes a ViT.",
    ]
    assert main(arguments) == 0
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    listed = page.text[page.text.index("Not finished") : page.text.index("Accuracy by target")]
    assert f"1 failed in {base}: art/seed2: exit code 1: Error: <no> images" in listed
    assert f"3 waiting in {base}: art/seed1; photo/seed1; photo/seed2" in listed
    assert "VPT is left out. It takes a ViT." in listed and "SPG/RN50" not in listed
    assert main([str(tmp_path / "output/SPG"), "--out", str(tmp_path / "r.html")]) == 0
    assert "Not finished" not in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_report_with_mistakes_prints_one_message(runs, tmp_path, capsys):
    assert main([str(tmp_path), "--out", str(tmp_path / "r.html")]) == 1
    assert "no finished run" in capsys.readouterr().err
    assert main([str(runs), "--baseline", "CoOp", "--out", str(tmp_path / "r.html")]) == 1
    assert "--baseline CoOp: no run is of this method" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([str(runs / "SPG-0"), "--out", str(tmp_path / "file" / "r.html")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Run headless Chromium with some arguments; return its stdout."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs chromium, chromium-browser or google-chrome")
    profile = tmp_path_factory.mktemp("profile")

    def run(*arguments):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        done = subprocess.run([found, *flags, *arguments], capture_output=True, timeout=MINUTES, check=True)
        return done.stdout.decode("utf-8")

    return run


@pytest.mark.parametrize(("width", "height"), [(1280, 1600), (390, 2000)])
def test_browser_draws_the_report_page(report, browser, tmp_path, width, height):
    shot = tmp_path / "shot.png"
    browser(f"--screenshot={shot}", f"--window-size={width},{height}", report[0].as_uri())
    image = np.asarray(Image.open(io.BytesIO(shot.read_bytes())).convert("RGB"))
    assert image.shape[:2] == (height, width)
    shares = (image != 255).any(axis=2)
    assert shares.mean() > 0.01
    # From top to bottom: text first, pictures, and no third of it empty.
    assert all(third.any() for third in np.array_split(shares, 3))
    assert not shares[:, -3:].any()  # nothing runs out of the page at the right
    # Blue, orange and so on: pictures were decoded, not only text drawn.
    saturation = image.max(axis=2).astype(int) - image.min(axis=2)
    assert (saturation > 80).mean() > 0.001
