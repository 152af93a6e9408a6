"""The launchers as a user types them, on the 30 images."""

import json
import shutil
import weakref

import pytest
from scripts.launching.configs import config_digest, method_config, named_backbone
from scripts.launching.request import Request
from scripts.launching.runs import anchored, resolved, settings_that_matter

from common.errors import UserError
from scripts import launch
from scripts.launching.comparison import Comparison
from trainers.methods import METHODS, find_method
from trainers.modules import clip_backbone

QUICK = ["OPTIM.MAX_EPOCH", "2", "TRAINER.SPG.STAGE1_OPTS", "['OPTIM.MAX_EPOCH', 2]", "DATALOADER.NUM_WORKERS", "0"]
OTHER_SET = ["TRAINER.SPG.GRAD_CLIP_OFF_TARGETS", "['purple']"]  # what shows only once there is a data set


def test_all_targets_and_seeds_then_the_table(bash, launched, tmp_path, image_folder, clip_file):
    finished = bash("spg/main.sh", image_folder, clip_file, *QUICK, SEEDS="1 2", TARGETS="red")
    assert finished.returncode == 0, finished.stderr
    runs = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("results.json"))
    assert runs == [f"output/stripes/SPG/tiny/default/red/seed{seed}/results.json" for seed in (1, 2)]
    assert "[2/2] SPG on stripes, target red, seed 2: log in" in finished.stdout
    table = finished.stdout.strip().splitlines()
    header, _, row, _, note, *_ = table[next(i for i, line in enumerate(table) if line.startswith("| method")) :]
    assert note.endswith("there are no runs of blue, green.")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, row)]
    assert cells[0] == ["method", "red", "average", "seeds", "trained", "training"]
    found = [json.loads((tmp_path / run).read_text())["accuracy"] for run in runs]
    assert cells[1][1].startswith(f"{sum(found) / 2:.1f} ± ") and cells[1][3] == "2"

    # Finished runs are skipped, a missing one is done again.
    (tmp_path / runs[0]).unlink()
    finished = launched("spg/main.sh", image_folder, clip_file, *QUICK, SEEDS="1 2", TARGETS="red")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("finished before") == 1
    assert (tmp_path / runs[0]).is_file()

    # Other settings are not taken for the run that is there.
    finished = launched("spg/main.sh", image_folder, clip_file, *QUICK, "OPTIM.LR", "0.1", TARGETS="red")
    assert finished.returncode == 1
    assert "holds a run that was started differently: settings" in finished.stderr

    # Nor is a folder that has another domain since.
    shutil.copytree(image_folder, tmp_path / "stripes")
    words = ("zsclip/main.sh", "stripes", clip_file, "DATALOADER.NUM_WORKERS", "0")
    assert launched(*words, TARGETS="red", OUTPUT="more").returncode == 0
    shutil.copytree(image_folder / "blue", tmp_path / "stripes" / "white")
    finished = launched(*words, TARGETS="red", OUTPUT="more")
    assert finished.returncode == 1
    assert "started differently: sources ['blue', 'green'] there and ['blue', 'green', 'white'] here" in finished.stderr

    # Zero-shot CLIP beside it.
    finished = launched("zsclip/main.sh", image_folder, clip_file, "DATALOADER.NUM_WORKERS", "0", TARGETS="red")
    assert finished.returncode == 0, finished.stderr
    assert "| ZeroshotCLIP " in finished.stdout


def test_a_failing_run_is_reported_and_the_others_go_on(launched, image_folder, clip_file):
    finished = launched("spg/main.sh", image_folder, clip_file, *OTHER_SET, TARGETS="red blue")
    assert finished.returncode == 1
    assert finished.stderr.count("Error: TRAINER.SPG.GRAD_CLIP_OFF_TARGETS names purple") == 2
    assert "2 of 2 runs failed" in finished.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nofile.pt"], "Backbone 'nofile.pt' is neither a file nor one of OpenAI's names: RN50, "),
        (["OPTIM.MAX_EPOCHS", "2"], "Non-existent key: OPTIM.MAX_EPOCHS. Did you mean OPTIM.MAX_EPOCH?"),
        (["OPTIM.MAX_EPOCH", "two"], "OPTIM.MAX_EPOCH is 'two'; accepted: a whole number."),
        (["TRAIN.PRINT_FREQ", "0"], "TRAIN.PRINT_FREQ is 0; accepted: numbers greater than or equal to 1."),
        (["TEST.FINAL_MODEL", "best"], "TEST.FINAL_MODEL is 'best'; accepted: last_step or best_val."),
        (["TRAINER.SPG.N_CTX", "16"], "TRAINER.SPG.N_CTX is 16, but TRAINER.SPG.CTX_INIT is 'a photo of a'"),
        (["TRAINER.SPG.STAGE1_OPTS", "['OPTIM.LR', -1]"], "OPTIM.LR is -1"),
        (["OPTIM.MAX_EPOCH"], "Settings come in pairs KEY VALUE; 'OPTIM.MAX_EPOCH' has no value."),
    ],
)
def test_mistakes_are_told_once_before_the_first_run(launched, tmp_path, image_folder, words, message):
    finished = launched("spg/main.sh", image_folder, *words)
    assert finished.returncode == 1
    assert message in finished.stderr and finished.stderr.count("Error: ") == 1
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("method", "words", "message"),
    [
        ("vp", ["TRAINER.VP.PROMPT_SIZE", "500"], "TRAINER.VP.PROMPT_SIZE is 500, but the images of "),
        ("coop", ["TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.N_CTX", "76"], "77 positions"),
        ("coop", ["MODEL.INIT_WEIGHTS", __file__], f"{__file__} is damaged or is not a checkpoint"),
        (
            "spg",
            ["TRAINER.SPG.STAGE1_CONFIG_FILE", "no.yaml"],
            "TRAINER.SPG.STAGE1_CONFIG_FILE no.yaml is not there, nor in",
        ),
    ],
)
def test_what_no_model_can_have_is_told_once_before_the_first_run(
    launched, tmp_path, image_folder, clip_file, method, words, message
):
    finished = launched(f"{method}/main.sh", image_folder, clip_file, *words, SEEDS="1 2")
    assert finished.returncode == 1
    assert message in finished.stderr and finished.stderr.count("Error: ") == 1
    assert not (tmp_path / "output").exists()


def test_class_specific_contexts_to_start_from_are_for_the_data_s_classes(launched, tmp_path, image_folder, clip_file):
    words = [image_folder, clip_file, *QUICK, "TRAINER.COOP.CSC", "True"]
    assert launched("coop/main.sh", *words, TARGETS="red").returncode == 0
    given = tmp_path / "output/stripes/CoOp/tiny/default/red/seed1"
    start = "MODEL.INIT_WEIGHTS", given
    finished = launched("coop/main.sh", *words, *start, TARGETS="red", OUTPUT="started")
    assert finished.returncode == 0, finished.stderr


def test_a_method_whose_model_cannot_be_does_not_stop_the_others(launched, tmp_path, image_folder, clip_file):
    words = ["compare.sh", image_folder, clip_file, *QUICK, "TRAINER.VP.PROMPT_SIZE", "500"]
    finished = launched(*words, TARGETS="red", METHODS="vp,zsclip")
    assert finished.returncode == 1 and "Not run to the end, see the errors above: VP" in finished.stdout
    assert finished.stderr.count("Error: ") == 1 and not (tmp_path / "output/stripes/VP").exists()
    assert (tmp_path / "output/stripes/ZeroshotCLIP/tiny/default/red/seed1/results.json").is_file()


def test_a_run_that_never_began_does_not_stand_in_the_way(launched, image_folder, clip_file):
    words = ["spg/main.sh", image_folder, clip_file, *QUICK]
    finished = launched(*words, *OTHER_SET, TARGETS="red")
    assert finished.returncode == 1 and "GRAD_CLIP_OFF_TARGETS names purple" in finished.stderr
    finished = launched(*words, TARGETS="red")
    assert finished.returncode == 0, finished.stderr
    assert "going on, log in the newest output/stripes/SPG/tiny/default/red/seed1/log.txt-*" in finished.stdout


def test_what_there_is_to_say_of_settings_is_said_once_for_all_methods(launched, image_folder, clip_file):
    words = [image_folder, clip_file, *QUICK, "OPTIM.LR", "0.1", "DATASET.VAL_PERCENT", "0.5"]
    finished = launched("compare.sh", *words, TARGETS="red", METHODS="zsclip,zsclip2,coop,dpspg", SEEDS="1 2")
    assert finished.returncode == 0, finished.stderr
    notes = [line for line in finished.stderr.splitlines() if line.startswith("Note: ")]
    (rate,) = [line for line in notes if "OPTIM.LR 0.1" in line]
    assert rate == "Note: without effect on ZeroshotCLIP, ZeroshotCLIP2: OPTIM.LR 0.1, OPTIM.MAX_EPOCH 2."
    (split,) = [line for line in notes if "DATASET.VAL_PERCENT 0.5" in line]
    assert split.startswith("Note: without effect on ZeroshotCLIP, ZeroshotCLIP2, CoOp, DPSPG: DATASET.VAL_PERCENT 0.5")
    (warm_up,) = [line for line in notes if "warm-up" in line]  # of CoOp it has one epoch
    assert warm_up.startswith("Note: OPTIM.LR is never reached by DPSPG: ") and "OPTIM.WARMUP_EPOCH 4" in warm_up


def test_methods_without_the_config_that_is_named_are_told(tmp_path, image_folder, clip_file, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = {"dataset": str(image_folder), "backbone": str(clip_file), "cfg": "ep10"}
    Comparison(Request(["CoOp", "ZeroshotCLIP", "SPG"], **asked))
    line = "Note: CFG is ep10, a config that these do not have: ZeroshotCLIP (runs by default), SPG (runs by default)."
    assert line in capsys.readouterr().err.splitlines()
    Comparison(Request(["CoOp"], **asked))
    assert "Note: CFG" not in capsys.readouterr().err


def test_the_clip_that_models_were_tried_with_is_not_held(tmp_path, image_folder, clip_file, monkeypatch):
    loaded, load = [], clip_backbone.load_backbone

    def noted(*args, **options):
        backbone = load(*args, **options)
        loaded.append(weakref.ref(backbone.model))
        return backbone

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clip_backbone, "load_backbone", noted)
    comparison = Comparison(Request(["CoOp", "SPG"], dataset=str(image_folder), backbone=str(clip_file)))
    assert len(comparison.launches) == 2 and [model() for model in loaded] == [None]


def test_unknown_data_set(launched):
    finished = launched("spg/main.sh", "pcas")
    assert finished.returncode == 1
    assert finished.stderr.startswith("Error: Unknown data set 'pcas': neither a folder nor one of ")
    assert "pacs" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_words_of_the_command_line():
    args = launch.parse_args(["SPG", "pacs", "ViT-B/16", "OPTIM.LR", "1"])
    assert (args.trainers, args.dataset, args.backbone, args.opts) == (["SPG"], "pacs", "ViT-B/16", ["OPTIM.LR", "1"])
    args = launch.parse_args(["SPG", "pacs", "OPTIM.LR", "1"])
    assert (args.dataset, args.backbone, args.opts) == ("pacs", None, ["OPTIM.LR", "1"])
    args = launch.parse_args(["SPG", "USE_CUDA", "False"])
    assert (args.dataset, args.opts) == (None, ["USE_CUDA", "False"])
    with pytest.raises(SystemExit):
        launch.parse_args(["SPG", "pacs", "RN50", "and more"])


def test_configs_of_methods():
    spg = find_method("SPG")
    assert method_config(spg, "pacs", None).parts[-2:] == ("SPG_CGAN", "pacs.yaml")
    assert method_config(spg, "office_home", None).parts[-2:] == ("SPG_CGAN", "default.yaml")
    assert method_config(spg, "pacs", "as_run").name == "as_run.yaml"
    assert method_config(find_method("zsclip"), "pacs", None).name == "default.yaml"
    trainers = ", ".join(sorted(one.trainer for one in METHODS))
    with pytest.raises(UserError, match=f"Unknown trainer 'SPQ'; accepted: {trainers}\\."):
        find_method("SPQ")
    with pytest.raises(UserError, match="CFG is 'asrun', .*as_run, default"):
        method_config(spg, "pacs", "asrun")


def test_the_backbone_that_a_config_names():
    assert named_backbone(method_config(find_method("coop"), "pacs", "vit_b16_ep50")) == "ViT-B/16"
    assert named_backbone(method_config(find_method("coop"), "pacs", None)) is None


def test_what_a_run_may_use_makes_it_no_other(tmp_path, monkeypatch):
    pairs = ["OPTIM.LR", "0.1", "TEST.MEMORY_MB", "100"]
    assert settings_that_matter(pairs) == {"OPTIM.LR": "0.1"}
    assert settings_that_matter(["B", "2", "A", "1"]) == settings_that_matter(["A", "1", "B", "2"])
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text("OPTIM:\n  LR: 0.1  # as published\n")
    other.write_text("OPTIM: {LR: 0.1}")
    assert config_digest(one) == config_digest(other)
    (tmp_path / "clip.pt").write_text("")
    monkeypatch.chdir(tmp_path)
    assert resolved("clip.pt") == resolved(str(tmp_path / "clip.pt"))
    assert resolved("RN50") == "RN50"


def test_paths_among_pairs_mean_the_same_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("")
    pairs = ["OPTIM.LR", "1", "TRAINER.SPG.LABEL_DIR", "labels", "TRAINER.SPG.STAGE1_CONFIG_FILE"]
    assert anchored([*pairs, "mine.yaml"])[1::2] == ["1", str(tmp_path / "labels"), str(tmp_path / "mine.yaml")]
    assert anchored([*pairs, "configs/trainers/SPG_CoOp/as_run.yaml"])[-1] == "configs/trainers/SPG_CoOp/as_run.yaml"


def test_settings_without_effect_are_no_other_run(launched, image_folder, clip_file):
    words = ("coop/main.sh", image_folder, clip_file, "OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "0")
    without = ("TRAINER.MAPLE.PROMPT_DEPTH", "4")
    assert launched(*words, *without, TARGETS="red").returncode == 0
    for more in (("TRAINER.MAPLE.PROMPT_DEPTH", "3"), (), without):
        finished = launched(*words, *more, TARGETS="red")
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.count("finished before") == 1
    refused = launched(*words, "OPTIM.LR", "0.5", TARGETS="red")
    assert refused.returncode == 1 and "holds a run that was started differently: settings" in refused.stderr


def test_moved_data_and_weights_are_those_of_the_finished_run_where_contents_are_equal(
    launched, tmp_path, image_folder, clip_file, vit_file
):
    def place(name, weights=clip_file):
        folder = tmp_path / name
        shutil.copytree(image_folder, folder / "stripes", copy_function=shutil.copyfile)
        shutil.copyfile(weights, folder / "tiny.pt")
        return ("coop/main.sh", folder / "stripes", folder / "tiny.pt", *QUICK)

    assert launched(*place("a"), TARGETS="red").returncode == 0
    shutil.rmtree(tmp_path / "a")
    moved = launched(*place("b"), TARGETS="red")
    assert moved.returncode == 0 and "finished before" in moved.stdout, moved.stderr
    words = place("c")
    shutil.copyfile(tmp_path / "c/stripes/red/down/0.png", tmp_path / "c/stripes/red/down/1.png")
    changed = launched(*words, TARGETS="red")  # another data set of the same name
    assert changed.returncode == 0 and (tmp_path / "output/c_stripes").is_dir(), changed.stderr
    weights = launched(*place("d", vit_file), TARGETS="red")
    assert weights.returncode == 1 and "other backbone weights" in weights.stderr
    # A run that is not finished compares them itself.
    (tmp_path / "output/stripes/CoOp/tiny/default/red/seed1/results.json").unlink()
    assert launched(*place("e", vit_file), TARGETS="red").returncode == 1
    shutil.rmtree(tmp_path / "e")
    again = launched(*place("e"), TARGETS="red")
    assert again.returncode == 0 and "going on" in again.stdout


def test_seeds_on_changed_images_are_marked_in_the_table(launched, tmp_path, image_folder, clip_file):
    data = shutil.copytree(image_folder, tmp_path / "stripes")
    words = ("zsclip/main.sh", data, clip_file, "DATALOADER.NUM_WORKERS", "0")
    assert "[1]" not in launched(*words, TARGETS="red").stdout
    (data / "red/down/0.png").write_bytes((data / "red/down/1.png").read_bytes())
    table = launched(*words, TARGETS="red", SEEDS="1 2").stdout
    assert "[1] Not comparable: other test images than the first run of this table." in table
