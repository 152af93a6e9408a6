"""The benchmark: both sides agree, mistakes fail, and JSON and exit code follow. No test asserts a time."""

import json

import pytest
import reference

from scripts import benchmark
from scripts.benchmarks import methods, spg
from scripts.benchmarks.timing import Row

FEW = methods.Amounts(ours=2, reference=1, every=50)


@pytest.fixture
def bench(tmp_path):
    """A bench of methods on a tiny CLIP."""
    return methods.MethodBench(reference.tiny_clip(layers=12, vision=12), "tiny", tmp_path, 1)


def test_class_names_are_complete_and_text_tower_and_inference_agree(bench):
    for n_classes, names in methods.CLASSES.items():
        assert len(names) == len({name.lower() for name in names}) == n_classes
    row = bench.text_tower(min(methods.CLASSES), FEW)
    assert row.agrees and row.difference is not None and row.ours > 0 and row.reference > 0
    assert bench.inference(7, 2, 1, goal=18).agrees


@pytest.mark.parametrize("step", [methods.COCOOP, methods.PROMPTSRC], ids=lambda step: step.trainer.__name__)
def test_step_agrees_with_reference_and_detects_a_mistake(bench, step):
    row = bench.step(step, 65, every=13, n_reference=2 if step.is_split else 0)
    assert row.agrees and row.difference is not None
    assert "reference on 5 classes, scaled" in row.note

    def with_other_labels(model, names, learned, batch, **more):
        return step.expected(model, names, learned, {**batch, "label": (batch["label"] + 1) % len(names)}, **more)

    wrong = step._replace(expected=with_other_labels)
    assert not bench.step(wrong, 65, every=13, n_reference=2 if step.is_split else 0).agrees


def test_spg_rows_agree_and_have_no_goals_on_other_images(image_folder, clip_file, tmp_path, capfd):
    images = spg.Images("stripes", image_folder, "folder", "default", clip_file, "red")
    opts = ["DATALOADER.NUM_WORKERS", "0", "DATALOADER.TRAIN_X.BATCH_SIZE", "4"]
    found = list(spg.measure_spg(images, spg.Amounts(images=3, steps=1, epochs=2), tmp_path, opts))
    assert [row.name for row in found] == [
        "test split seen again, SPG, 2 classes, stripes",
        "stage II epoch with validation, exact, stripes",
        "stage II epoch with validation, TRAIN_VIEWS 8, stripes",
        "whole SPG run, exact, stripes",
        "whole SPG run, TRAIN_VIEWS 8, stripes",
    ]
    assert all(row.agrees and row.ours > 0 and row.reference > 0 and row.goal is None for row in found)
    assert [row.difference is not None for row in found] == [True, True, False, False, False]
    assert not capfd.readouterr().out


@pytest.mark.parametrize(("gap", "code"), [(1e-6, 0), (2e-4, 1), (float("nan"), 1)])
def test_exit_code_and_json_follow_the_difference(tmp_path, monkeypatch, capsys, gap, code):
    monkeypatch.setattr(methods, "text_rows", lambda *_: [Row("pair", 1.0, 2.0, "s", 5, gap)])
    path = tmp_path / "new/figures.json"
    assert benchmark.main(["--quick", "--only", "text", "--json", str(path)]) == code
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["machine"]["versions"]["torch"] and record["quick"] is True and record["rows"][0]["ratio"] == 2.0
    assert ("OUTPUTS DIFFER: pair" in capsys.readouterr().out) == bool(code)
