"""The words nearest to the context vectors of runs."""

import re

import pytest

from scripts.interpret_prompt import main


@pytest.fixture
def interpret(capsys):
    """Run the command: {title of a context: cells "word distance" by vector and rank}, and the output."""

    def run(*words):
        capsys.readouterr()
        assert main(list(map(str, words))) == 0
        printed, found = capsys.readouterr().out, {}
        for title, table in re.findall(r"^(.+)\n\n((?:\|.*\n)+)", printed, re.MULTILINE):
            found[title] = [[cell.strip() for cell in row.split("|")[2:-1]] for row in table.splitlines()[2:]]
        return found, printed

    return run


def test_initial_context_is_its_words_at_distance_zero(finish_run, interpret):
    found, printed = interpret(finish_run("CoOp", "OPTIM.LR", "1e-12"))
    assert [row[0] for row in found["CoOp"]] == ["a 0.000", "photo 0.000", "of 0.000", "a 0.000"]
    for row in found["CoOp"]:
        distances = [float(cell.split()[-1]) for cell in row]
        assert len(row) == 5 and distances == sorted(distances) and distances[1] > 0.01
    assert re.search(r"and the nearest other word: [0-9]\.[0-9]{3} \(median\)", printed)


GENERATED = [f"generated for an image of {name}" for name in ("blue (val)", "green (val)", "red (test)")]


@pytest.mark.parametrize(
    ("trainer", "opts", "names"),
    [
        ("CoOp", ("TRAINER.COOP.CSC", "True"), ["across", "down"]),
        ("DPL", (), ["mean over the source domains' images"]),
        ("SPG", (), ["prompt label of blue", "prompt label of green", *GENERATED]),
    ],
)
def test_contexts_of_a_run_are_shown(finish_run, interpret, trainer, opts, names):
    assert list(interpret(finish_run(trainer, *opts))[0]) == names


@pytest.mark.parametrize(("trainer", "signs"), [("SPG", [""]), ("CoCoOp", [""]), ("DPSPG", [" (pos)", " (neg)"])])
def test_contexts_generated_for_images_differ(finish_run, image_folder, interpret, trainer, signs):
    images = [image_folder / "red" / name / "0.png" for name in ("across", "down")]
    found, _ = interpret(finish_run(trainer), "--images", *images)
    assert list(found) == [f"{image}{sign}" for image in images for sign in signs]
    assert len({str(rows) for rows in found.values()}) == len(found)


def test_interpret_prompt_with_mistakes_prints_one_message(finish_run, image_folder, tmp_path, capsys):
    zero_shot = finish_run("ZeroshotCLIP").rename(tmp_path / "zero-shot")
    dpspg = finish_run("DPSPG")
    for arguments, message in (
        ([tmp_path / "nowhere"], "nowhere"),
        ([zero_shot], "ZeroshotCLIP has no context"),
        ([zero_shot, "--images", image_folder / "red/across/0.png"], "ZeroshotCLIP generates no contexts"),
        ([dpspg], "generates two contexts for each image. Name images"),
        ([dpspg, "--images", "nowhere.png"], "nowhere.png"),
    ):
        capsys.readouterr()
        assert main(list(map(str, arguments))) == 1
        error = capsys.readouterr().err
        assert error.startswith("Error: ") and message in error and error.count("\n") == 1
