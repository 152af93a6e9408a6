"""The words nearest to context vectors of files and runs."""

import re

import clip
import pytest
import torch

from scripts.interpret_prompt import main
from trainers.modules.clip.backbone import load_backbone


@pytest.fixture
def embeddings(clip_file):
    """Token embeddings (V, D) of the tiny CLIP."""
    return load_backbone(str(clip_file)).model.token_embedding.weight


@pytest.fixture
def interpret(capsys):
    """Run the command: {name of a context: [[(word, distance), ...] of each vector]}, and the output."""

    def run(*words):
        capsys.readouterr()
        assert main(list(map(str, words))) == 0
        printed, found = capsys.readouterr().out, {}
        for line in printed.splitlines():
            if title := re.fullmatch(re.escape(str(words[0])) + ": (.*)", line):
                rows = found.setdefault(title[1], [])
            elif re.match(r"\| [0-9]", line):
                cells = [cell.strip().rpartition(" ") for cell in line.strip("|").split("|")[1:]]
                rows.append([(word, float(distance)) for word, _, distance in cells])
        return found, printed

    return run


def test_words_are_found_at_distance_zero(clip_file, embeddings, tmp_path, interpret):
    tokens = clip.tokenize("a photo of cats")[0, 1:5]
    torch.save(embeddings[tokens].half(), tmp_path / "PACS_CoOp_a.pt")  # as published labels
    found, printed = interpret(tmp_path / "PACS_CoOp_a.pt", "--backbone", clip_file, "--topk", 2)
    rows = found["PACS_CoOp_a"]
    assert [row[0] for row in rows] == [("a", 0.0), ("photo", 0.0), ("of", 0.0), ("cats", 0.0)]
    distances = torch.cdist(embeddings[tokens].half().float(), embeddings)
    for row, expected in zip(rows, distances.topk(2, largest=False).values.tolist(), strict=True):
        assert row[1][1] == pytest.approx(expected[1], abs=2e-3) and row[1][1] > 0.01
    assert re.search(r"to the nearest other one: [0-9]\.[0-9]{3} \(median\)", printed)


@pytest.mark.parametrize("shape", [(4, 64), (2, 4, 64)])
def test_checkpoints_of_coop_are_read(clip_file, embeddings, tmp_path, interpret, shape):
    ctx = embeddings[clip.tokenize("a photo of cats")[0, 1:5]].expand(shape).clone()
    state = {"ctx": ctx, "token_prefix": torch.zeros(2, 1, 64), "token_suffix": torch.zeros(2, 72, 64)}
    torch.save({"state_dict": state, "epoch": 50}, tmp_path / "model.pth.tar-50")
    found, _ = interpret(tmp_path / "model.pth.tar-50", "--backbone", clip_file)
    assert list(found) == (["model.pth"] if len(shape) == 2 else ["class 1", "class 2"])
    assert all(rows[3][0] == ("cats", 0.0) for rows in found.values())


@pytest.mark.parametrize(
    ("trainer", "opts", "names"),
    [
        ("CoOp", (), ["CoOp"]),
        ("CoOp", ("TRAINER.COOP.CSC", "True"), ["across", "down"]),
        ("CoCoOp", (), ["CoCoOp"]),
        ("DPL", (), ["mean over the source domains' images"]),
        (
            "SPG",
            (),
            [
                *("prompt label of blue", "prompt label of green"),
                *(f"generated for an image of {name}" for name in ("blue (val)", "green (val)", "red (test)")),
            ],
        ),
    ],
)
def test_contexts_of_a_run_are_shown(finished, interpret, trainer, opts, names):
    assert list(interpret(finished(trainer, *opts))[0]) == names


@pytest.mark.parametrize(("trainer", "signs"), [("SPG", [""]), ("CoCoOp", [""]), ("DPSPG", [" (pos)", " (neg)"])])
def test_contexts_generated_for_images_differ(finished, image_folder, interpret, trainer, signs):
    images = [image_folder / "red" / name / "0.png" for name in ("across", "down")]
    found, _ = interpret(finished(trainer), "--images", *images)
    assert list(found) == [f"{image}{sign}" for image in images for sign in signs]
    assert len({str(rows) for rows in found.values()}) == len(found)


def test_mistakes_are_one_message(finished, tmp_path, clip_file, capsys):
    zero_shot = finished("ZeroshotCLIP").rename(tmp_path / "zero-shot")
    dpspg = finished("DPSPG").rename(tmp_path / "dpspg")
    spg = finished("SPG")
    (spg / "contexts.npz").unlink()
    contexts = {"narrow": torch.zeros(4, 12), "list": [1, 2], "nan": torch.full((4, 64), float("nan"))}
    for name, content in contexts.items():
        torch.save(content, tmp_path / f"{name}.pt")
    for arguments, message in (
        ([tmp_path / "nowhere.pt"], "does not exist"),
        ([tmp_path / "narrow.pt"], "Name it with --backbone"),
        ([tmp_path / "narrow.pt", "--backbone", clip_file], "has width 12, and the text tower of the backbone has"),
        ([tmp_path / "list.pt", "--backbone", clip_file], "holds no context"),
        ([tmp_path / "nan.pt", "--backbone", clip_file], "values that are not finite"),
        ([zero_shot], "is a run of ZeroshotCLIP, which has no context"),
        ([zero_shot, "--images", "a.png"], "is a run of ZeroshotCLIP, which generates none"),
        ([zero_shot, "--topk", "0"], "--topk is 0"),
        ([dpspg], "makes two contexts of each image. Name some images"),
        ([spg], "has no contexts.npz. Name some images"),
        ([spg, "--images", "nowhere.png"], "nowhere.png"),
    ):
        capsys.readouterr()
        assert main(list(map(str, arguments))) == 1
        error = capsys.readouterr().err
        assert error.startswith("Error: ") and message in error and error.count("\n") == 1
