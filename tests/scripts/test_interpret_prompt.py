"""The words nearest to context vectors."""

import clip
import pytest
import torch

from common.files import read_json
from scripts import interpret_prompt
from scripts.interpret_prompt import main, nearest_words, vocabulary, word_distance
from trainers.modules.clip.backbone import load_backbone


def test_words_are_found_at_distance_zero(clip_file, tmp_path, capsys):
    embeddings = load_backbone(str(clip_file)).model.token_embedding.weight
    tokens = clip.tokenize("a photo of cats")[0, 1:5]
    torch.save(embeddings[tokens].half(), tmp_path / "PACS_CoOp_a.pt")  # as the published labels are
    out = tmp_path / "words.json"
    assert (
        main([str(tmp_path / "PACS_CoOp_a.pt"), "--backbone", str(clip_file), "--topk", "2", "--json", str(out)]) == 0
    )
    found = read_json(out)[str(tmp_path / "PACS_CoOp_a.pt")]["PACS_CoOp_a"]
    assert [row[0][0] for row in found] == ["a", "photo", "of", "cats"]
    assert all(row[0][1] < 1e-4 and row[1][1] > 0.01 for row in found)
    assert "| 1        | a 0.000 " in capsys.readouterr().out


def test_distances_by_hand():
    embeddings = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    found = nearest_words(torch.tensor([[0.0, 0.0]]), embeddings, ["zero", "far", "near"], 3)
    assert found == [[("zero", 0.0), ("near", pytest.approx(1.0)), ("far", pytest.approx(5.0))]]


def test_vocabulary_shows_parts_of_words():
    words = vocabulary()
    assert len(words) == 49408
    assert "photo" in words and "photo-" in words
    assert words[-2:] == ["<|startoftext|>", "<|endoftext|>"]
    assert "\N{SOCCER BALL}" in words  # not the signs that the tokenizer has in the place of its bytes


def test_whole_words_only(clip_file, tmp_path, monkeypatch, capsys):
    embeddings, words = load_backbone(str(clip_file)).model.token_embedding.weight, vocabulary()[:2000]
    monkeypatch.setattr(interpret_prompt, "vocabulary", lambda tokenizer: words)  # all of them take seconds
    tokens = [words.index(word) for word in ("photo", "photo-", ",")]
    torch.save(embeddings[tokens], tmp_path / "label.pt")
    arguments = [str(tmp_path / "label.pt"), "--backbone", str(clip_file), "--json", str(tmp_path / "words.json")]
    assert main([*arguments, "--words"]) == 0
    rows = read_json(tmp_path / "words.json")[arguments[0]]["label"]
    assert rows[0][0] == ["photo", 0.0]
    assert all(word.isalpha() and distance > 0 for row in rows[1:] for word, distance in row)
    assert main([*arguments, "--topk", "100000"]) == 0  # all there are
    rows = read_json(tmp_path / "words.json")[arguments[0]]["label"]
    assert [row[0] for row in rows] == [["photo", 0.0], ["photo-", 0.0], [",", 0.0]]
    assert {len(row) for row in rows} == {2000}


def test_distance_from_word_to_word():
    line = torch.tensor([[0.0], [1.0], [3.0], [3.5], [3.75]])  # to the nearest other one: 1, 1, 0.5, 0.25, 0.25
    assert word_distance(line) == 0.5


@pytest.mark.parametrize("shape", [(4, 64), (2, 4, 64)])
def test_checkpoints_of_coop(clip_file, tmp_path, capsys, shape):
    tokens = clip.tokenize("a photo of cats")[0, 1:5]
    ctx = load_backbone(str(clip_file)).model.token_embedding.weight[tokens].expand(shape).clone()
    state = {"ctx": ctx, "token_prefix": torch.zeros(2, 1, 64), "token_suffix": torch.zeros(2, 72, 64)}
    torch.save({"state_dict": state, "epoch": 50}, tmp_path / "model.pth.tar-50")
    assert main([str(tmp_path / "model.pth.tar-50"), "--backbone", str(clip_file)]) == 0
    printed = capsys.readouterr().out
    assert ("tar-50: class 2" in printed) == (len(shape) == 3)
    assert "| 4        | cats 0.000 " in printed


@pytest.mark.parametrize(("trainer", "opts"), [("CoOp", ()), ("CoOp", ("TRAINER.COOP.CSC", "True")), ("CoCoOp", ())])
def test_learned_contexts_of_a_run(finished, tmp_path, capsys, trainer, opts):
    finished(trainer, *opts)
    capsys.readouterr()
    assert main([str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert ("run: down" in printed) if opts else (f"run: {trainer}" in printed)


def test_generated_contexts_of_a_run(finished, tmp_path, image_folder, capsys):
    finished("SPG")
    images = [str(path) for path in sorted((image_folder / "red/down").glob("*.png"))[:2]]
    capsys.readouterr()
    assert main([str(tmp_path / "run"), "--images", *images]) == 0
    printed = capsys.readouterr().out
    assert all(f"run: {image}" in printed for image in images)
    assert main([str(tmp_path / "run")]) == 0  # those that the run kept
    printed = capsys.readouterr().out
    shown = [line.partition("run: ")[2] for line in printed.splitlines() if "run: " in line]
    assert shown == [
        *("prompt label of blue", "prompt label of green"),
        *(f"generated for an image of {name}" for name in ("blue (val)", "green (val)", "red (test)")),
    ]
    (tmp_path / "run/contexts.npz").unlink()
    assert main([str(tmp_path / "run")]) == 1
    assert "kept none (contexts.npz): name some images" in capsys.readouterr().err
    assert main([str(tmp_path / "run"), "--images", "nowhere.png"]) == 1
    assert "nowhere.png" in capsys.readouterr().err


def test_contexts_of_cocoop_follow_the_image(finished, tmp_path, image_folder, capsys):
    finished("CoCoOp")
    images, out = [str(image_folder / "red" / name / "0.png") for name in ("across", "down")], tmp_path / "words.json"
    assert main([str(tmp_path / "run"), "--images", *images, "--json", str(out)]) == 0
    found = read_json(out)[str(tmp_path / "run")]
    assert list(found) == images and found[images[0]] != found[images[1]]


def test_both_contexts_that_dpspg_makes_of_an_image(finished, tmp_path, image_folder, capsys):
    run = finished("DPSPG")
    images = sorted(map(str, (image_folder / "red" / "across").iterdir()))[:2]
    assert main([str(run), "--images", *images, "--topk", "1", "--json", str(tmp_path / "found.json")]) == 0
    found = read_json(tmp_path / "found.json")[str(run)]
    assert list(found) == [f"{image} ({sign})" for image in images for sign in ("pos", "neg")]
    assert len({str(words) for words in found.values()}) == 4
    capsys.readouterr()
    assert main([str(run)]) == 1
    assert "makes two contexts of each image: name some images" in capsys.readouterr().err


def test_the_context_of_the_source_domains_of_dpl(finished, capsys):
    assert main([str(finished("DPL")), "--topk", "1"]) == 0
    assert "mean over the source domains' images" in capsys.readouterr().out


def test_mistakes(finished, tmp_path, clip_file, capsys):
    finished("ZeroshotCLIP")
    torch.save(torch.zeros(4, 12), tmp_path / "narrow.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(torch.full((4, 64), float("nan")), tmp_path / "nan.pt")
    torch.save(torch.zeros(4, 64), tmp_path / "good.pt")
    for arguments, message in (
        ([tmp_path / "nowhere.pt"], "is not there"),
        ([tmp_path / "narrow.pt"], "name it with --backbone"),
        ([tmp_path / "narrow.pt", "--backbone", clip_file], "has width 12, the text tower of the backbone 64"),
        ([tmp_path / "list.pt", "--backbone", clip_file], "holds no context"),
        ([tmp_path / "nan.pt", "--backbone", clip_file], "values that are not finite"),
        ([tmp_path / "good.pt", "--backbone", clip_file, "--json", tmp_path / "nan.pt" / "x"], "cannot be written"),
        ([tmp_path / "run"], "is a run of ZeroshotCLIP, which has no context"),
        ([tmp_path / "run", "--images", "a.png"], "makes no context from an image"),
        ([tmp_path / "run", "--topk", "0"], "--topk is 0"),
    ):
        capsys.readouterr()
        assert main(list(map(str, arguments))) == 1
        assert message in capsys.readouterr().err
