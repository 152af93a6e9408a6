"""The words nearest to context vectors."""

import clip
import pytest
import torch

from common.records import read_record
from scripts.interpret_prompt import main, nearest_words, vocabulary
from trainers.modules.clip_backbone import load_clip


def test_words_are_found_at_distance_zero(clip_file, tmp_path, capsys):
    embeddings = load_clip(str(clip_file)).token_embedding.weight
    tokens = clip.tokenize("a photo of cats")[0, 1:5]
    torch.save(embeddings[tokens].half(), tmp_path / "PACS_CoOp_a.pt")  # as the published labels are
    out = tmp_path / "words.json"
    assert (
        main([str(tmp_path / "PACS_CoOp_a.pt"), "--backbone", str(clip_file), "--topk", "2", "--json", str(out)]) == 0
    )
    found = read_record(out)[str(tmp_path / "PACS_CoOp_a.pt")]["PACS_CoOp_a"]
    assert [row[0][0] for row in found] == ["a", "photo", "of", "cats"]
    assert all(row[0][1] < 0.01 < row[1][1] for row in found)
    assert "| 1        | a 0.0" in capsys.readouterr().out


def test_distances_by_hand():
    embeddings = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    found = nearest_words(torch.tensor([[0.0, 0.0]]), embeddings, ["zero", "far", "near"], 3)
    assert found == [[("zero", 0.0), ("near", pytest.approx(1.0)), ("far", pytest.approx(5.0))]]


def test_vocabulary_shows_parts_of_words():
    words = vocabulary()
    assert len(words) == 49408
    assert "photo" in words and "photo-" in words


@pytest.mark.parametrize(("trainer", "opts"), [("CoOp", ()), ("CoOp", ("TRAINER.COOP.CSC", "True")), ("CoCoOp", ())])
def test_learned_contexts_of_a_run(train, tmp_path, capsys, trainer, opts):
    assert train(trainer, "red", *opts) == 0
    capsys.readouterr()
    assert main([str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert ("run: down" in printed) if opts else (f"run: {trainer}" in printed)


def test_generated_contexts_of_a_run(train, tmp_path, image_folder, capsys):
    assert train("SPG", "red") == 0
    images = [str(path) for path in sorted((image_folder / "red/down").glob("*.png"))[:2]]
    capsys.readouterr()
    assert main([str(tmp_path / "run"), "--images", *images]) == 0
    printed = capsys.readouterr().out
    assert all(f"run: {image}" in printed for image in images)
    assert main([str(tmp_path / "run")]) == 1
    assert "name some (--images" in capsys.readouterr().err
    assert main([str(tmp_path / "run"), "--images", "nowhere.png"]) == 1
    assert "nowhere.png" in capsys.readouterr().err


def test_mistakes(train, tmp_path, clip_file, capsys):
    assert train("ZeroshotCLIP", "red") == 0
    torch.save(torch.zeros(4, 12), tmp_path / "narrow.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for arguments, message in (
        ([tmp_path / "nowhere.pt"], "is not there"),
        ([tmp_path / "narrow.pt"], "name it with --backbone"),
        ([tmp_path / "narrow.pt", "--backbone", clip_file], "has width 12, the text tower of the backbone 64"),
        ([tmp_path / "list.pt", "--backbone", clip_file], "holds no context"),
        ([tmp_path / "run"], "is a run of ZeroshotCLIP, which has no context"),
        ([tmp_path / "run", "--topk", "0"], "--topk is 0"),
    ):
        capsys.readouterr()
        assert main(list(map(str, arguments))) == 1
        assert message in capsys.readouterr().err
