"""The benchmark: its reference equals our path, its table and JSON say what was measured. Times are not asserted."""

import json
import operator

import pytest
import torch
from reference import plain_image_features, plain_text_features, tiny_clip

from common.startup import REPOSITORY
from scripts import benchmark
from scripts.benchmarks import families, field, reference, reference_field, spg, text
from scripts.benchmarks.classes import DOMAIN_NET, OFFICE_HOME, PACS
from scripts.benchmarks.timing import Row, difference, median_pair, peak_memory_gb

TINY_TEXT = text.TextAmounts({7: 2, 65: 2, 345: 1}, {7: 2, 65: 1, 345: 1}, {345: 50}, 1, (3, 2), 2, (150, 300))
TINY_FIELD = field.FieldAmounts({65: 13, 345: 69}, 1, {7: 2, 65: 1}, {7: 1, 65: 1})
TINY_SPG = spg.SpgAmounts(3, 1, 1, False, 1)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Tiny matrices on a busy machine: a second thread would be waited for more than it helps."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # heeded by share_cores
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    return text.random_clip("small")


@pytest.mark.parametrize("names, count", [(PACS, 7), (OFFICE_HOME, 65), (DOMAIN_NET, 345)])
def test_class_names_are_all_there_and_differ(names, count):
    assert len(names) == len({name.lower() for name in names}) == count
    assert all(name == name.strip() and "_" not in name for name in names)


def test_published_text_encoder_equals_the_plain_one():
    model, ctx = tiny_clip(), 0.1 * torch.randn(4, 64)
    published = reference.PublishedTextEncoder(model, ["dog", "hot_air balloon"], 4)
    assert difference(published(ctx), plain_text_features(model, ["dog", "hot_air balloon"], ctx)) < 1e-6


@pytest.mark.parametrize("n_classes", [7, 65, 345])
def test_text_tower_agrees(model, n_classes):
    row = text.text_alone("small", model, n_classes, TINY_TEXT)
    assert row.agrees and row.ours > 0 and row.reference > 0


def test_coop_and_cocoop_steps_agree(model):
    assert text.coop("small", model, PACS, TINY_TEXT, batch=4).agrees
    assert text.cocoop("small", model, PACS, TINY_TEXT).agrees


@pytest.fixture(scope="module")
def vit():
    return tiny_clip(layers=12, vision=12)


def test_the_reference_of_both_towers_equals_the_plain_ones(vit):
    ctx, deep = 0.1 * torch.randn(2, 64), list(0.1 * torch.randn(3, 2, 64))
    published = reference.PublishedTextEncoder(vit, ["dog", "hot_air balloon"], 2)
    expected = plain_text_features(vit, ["dog", "hot_air balloon"], ctx, deep=deep)
    assert difference(published(ctx, deep), expected) < 1e-6
    images = torch.randn(2, 3, 32, 32)
    expected = plain_image_features(vit, images, ctx, deep)
    found = reference_field.prompted_image_features(vit, images, ctx, deep)
    assert difference(found, expected / expected.norm(dim=-1, keepdim=True)) < 1e-6


def test_methods_of_the_field_agree_with_their_references(vit, tmp_path):
    rows = list(field.FieldBench(vit, "tiny", TINY_FIELD, tmp_path, goals=False).rows())
    assert [row.what for row in rows] == [
        "MaPLe step at batch 4, 65 classes, tiny",
        "MaPLe step at batch 4, 345 classes, tiny",
        "PromptSRC step at batch 4, 65 classes, tiny",
        "PromptSRC step at batch 4, 345 classes, tiny",
        "KgCoOp step at batch 32, 65 classes, tiny",
        "DPSPG inference, 7 classes, tiny",
        "DPSPG inference, 65 classes, tiny",
    ]
    assert all(row.agrees and row.difference is not None and row.ours > 0 and row.reference > 0 for row in rows)
    assert "reference on 5 classes, its text tower's time scaled" in rows[1].note


@pytest.mark.parametrize("method, broken", [("maple", "maple_step"), ("kgcoop", "kgcoop_step")])
def test_a_mistake_in_a_step_of_the_field_shows(vit, tmp_path, monkeypatch, method, broken):
    right = getattr(reference_field, broken)

    def other_labels(model, encoder, learner, given, labels, *more):
        return right(model, encoder, learner, given, labels.flip(0), *more)

    monkeypatch.setattr(field, broken, other_labels)
    assert not getattr(field.FieldBench(vit, "tiny", TINY_FIELD, tmp_path, goals=False), method)(65).agrees


def test_families_agree_with_their_own_code(tmp_path, monkeypatch):
    small = (32, 32, 2, 64, 8, 77, 49408, 64, 1, 2)
    config = {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"width": 64, "heads": 2, "layers": 2, "no_causal_mask": True},
    }
    open_clip = pytest.importorskip("open_clip", reason="needs open_clip_torch")
    (tmp_path / "small-all-positions.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "small-all-positions.json")
    monkeypatch.setattr(families, "OPENAIS", {"small": small})
    monkeypatch.setattr(families, "OPEN_CLIPS", ("small-all-positions",))
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
    images = {**sizes, "image_size": 32, "patch_size": 16}
    sections = {"text_config": {**sizes, "eos_token_id": 49407}, "vision_config": images, "projection_dim": 32}
    monkeypatch.setattr(families, "HUGGING_FACES", sections)
    pytest.importorskip("transformers", reason="needs transformers")
    rows = list(families.family_rows(TINY_TEXT, tmp_path))
    assert len(rows) == 15 and all(row.difference < 1e-5 and row.agrees for row in rows)
    goals = {row.what: row.goal for row in rows if row.goal}
    causal = ("small", "hf: ViT-B/32")  # the other one's cannot be cut
    assert goals == {f"text tower, per-image contexts, 65 classes, {name}": 15 for name in causal}
    assert not (tmp_path / "family.pt").exists() and not (tmp_path / "family").exists()


def test_families_tell_an_image_tower_of_another_kind(tmp_path, monkeypatch):
    load = families.load_backbone

    def load_another(name):
        state = torch.load(name, weights_only=True)
        torch.save({**state, "visual.proj": state["visual.proj"].flip(0)}, name)
        return load(name)

    monkeypatch.setattr(families, "load_backbone", load_another)
    pair = families.openai_pair("small", (32, 32, 2, 64, 8, 77, 49408, 64, 1, 2), tmp_path)
    assert not families.image_row(pair, 1).agrees


def test_independent_batch_is_the_one_at_its_position():
    loader = [{"index": i} for i in range(4)]
    assert reference.independent_batch(loader, 2) == {"index": 2}
    with pytest.raises(IndexError):
        reference.independent_batch(loader, 4)
    pairs = []
    reference.stage2_training(lambda a, b: pairs.append((a["index"], b["index"])), loader, [3, 0])
    assert pairs == [(0, 3), (1, 0)]
    pairs.clear()
    reference.stage2_training(lambda a, b: pairs.append((a["index"], b["index"])), loader)
    assert [first for first, _ in pairs] == [0, 1, 2, 3]


@pytest.fixture
def bench(image_folder, clip_file, tmp_path):
    configs = REPOSITORY / "configs"
    files = configs / "datasets/folder.yaml", configs / "trainers/SPG_CGAN/default.yaml"
    images = spg.Images("stripes", image_folder, *files, "red", clip_file)
    opts = ["DATALOADER.NUM_WORKERS", "0", "DATALOADER.TRAIN_X.BATCH_SIZE", "4"]
    return spg.SpgBench(images, TINY_SPG, tmp_path, opts)


def test_spg_rows_agree_and_are_complete(bench, capfd):
    rows = bench.rows()
    assert [row.what for row in rows] == [
        "stage I step, stripes",
        "stage I epoch with validation, stripes",
        "stage II step, stripes",
        "stage II epoch with validation, exact, stripes",
        "test split seen again, SPG, 2 classes, stripes",
        "stage II epoch with validation, TRAIN_VIEWS 8, stripes",
        "whole SPG run, exact, stripes",
        "whole SPG run, TRAIN_VIEWS 8, stripes",
    ]
    assert all(row.agrees and row.ours > 0 and row.reference > 0 for row in rows)
    assert sum(row.difference is not None for row in rows) == 5
    assert all(row.goal is None for row in rows)  # the goals are for PACS and tiny_rn
    assert not capfd.readouterr().out  # what trainers say goes to the log
    assert "Evaluate on" in bench.log.read_text(encoding="utf-8")


def test_a_mistake_in_the_reference_shows(bench, monkeypatch):
    right = reference.stage2_step

    def other_update(model, networks, optimizers, norms, batch, independent, labels):
        return right(model, networks, optimizers, norms, independent, batch, labels)

    monkeypatch.setattr(spg, "stage2_step", other_update)
    with bench.quiet():
        bench.stage1()
        bench.give_labels(bench.trainer)
        with spg.trained(bench.trainer):
            loader = reference.training_loader(bench.trainer.train_loader_x.dataset.dataset, 4, 0)
            assert not bench._stage2_step(loader).agrees


def test_growth_counts_every_number(model):
    found = text.growth(model, TINY_TEXT, class_counts=(2, 4), batch=2)
    assert list(found["classes"]["seconds_per_image"]) == [2, 4]
    assert list(found["images"]["seconds_per_image"]) == [150, 300]


@pytest.mark.parametrize(
    "cost, linear", [({1: 1.0, 10: 10.0}, True), ({1: 1.0, 10: 2.0}, True), ({1: 1.0, 2: 2.0, 4: 8.0}, False)]
)
def test_at_most_linear(cost, linear):
    assert text.at_most_linear(cost) is linear


def test_peak_memory_is_that_of_the_child():
    small, large = peak_memory_gb(len, b""), peak_memory_gb(operator.mul, b"x", 2**28)
    assert 0.2 < large - small < 0.3


def test_pair_returns_last_results_of_both():
    (ours, found), (theirs, expected) = median_pair(lambda: "ours", lambda: "reference", 2)
    assert (found, expected) == ("ours", "reference") and ours >= 0 and theirs >= 0


ROWS = [
    Row("fast", 2.0, 50.0, "ms", 20, 1e-6, "per image"),
    Row("throughput", 300.0, 30.0, "images/s", 20, 1e-6),
    Row("memory", 2.0, None, "GB", 8),
]


def test_table_names_ratios_goals_and_what_was_missed():
    shown = benchmark.report(ROWS, {"classes": {"seconds_per_image": {7: 0.001}, "linear_or_better": True}}, 3.0)
    lines = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")] for line in shown.splitlines()[2:5]}
    assert lines["fast"][2:7] == ["2 ms", "50 ms", "25.0x", "20x reached", "1.0e-06"]
    assert lines["throughput"][4:6] == ["10.0x", "20x NOT reached"]
    assert lines["memory"][3:6] == ["", "", "< 8 GB reached"]
    assert "Goals that were not reached: throughput" in shown
    assert "number of classes (linear or better): 7: 1 ms" in shown
    assert "agree within 1e-4" in shown


@pytest.mark.parametrize("gap, code", [(1e-6, 0), (2e-4, 1), (float("nan"), 1)])
def test_exit_code_and_json(tmp_path, monkeypatch, capsys, gap, code):
    monkeypatch.setattr(benchmark, "measure", lambda *_: [Row("pair", 1.0, 2.0, "s", 5, gap)])
    path = tmp_path / "new" / "figures.json"
    assert benchmark.main(["--quick", "--only", "text", "--json", str(path)]) == code
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["machine"]["versions"]["torch"] and record["quick"] is True
    assert record["rows"][0]["ratio"] == 2.0 and record["rows"][0]["reached"] is False
    assert ("OUTPUTS DIFFER: pair" in capsys.readouterr().out) == bool(code)


def test_json_that_cannot_be_written_is_said_before_measuring(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "measure", lambda *_: pytest.fail("measured"))
    tmp_path.chmod(0o555)
    assert benchmark.main(["--json", str(tmp_path / "x.json")]) == 1
    assert "--json names" in capsys.readouterr().err


def test_missing_clip_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(spg, "SHARED", tmp_path / "shared")
    monkeypatch.setattr(spg, "MINI_CLIP", tmp_path / "mini_clip.pt")
    assert benchmark.main(["--quick", "--only", "spg"]) == 1
    assert "mini_clip.pt" in capsys.readouterr().err


def test_embedded_images_where_nothing_lies_beside(tmp_path, monkeypatch, clip_file):
    monkeypatch.setattr(spg, "SHARED", tmp_path / "shared")
    monkeypatch.setattr(spg, "MINI_CLIP", clip_file)
    images = spg.choose_images(tmp_path)
    assert images.dataset_file.stem == "mini_digits" and images.backbone == clip_file and not images.goals
