"""The words nearest to the context vectors of runs."""

import re

import pytest

from scripts.interpret_prompt import main


@pytest.fixture
def interpret(capsys):
    """Run the command: {title of a context: [[(word, distance), ...] of each vector]}, and the output."""

    def run(*words):
        capsys.readouterr()
        assert main(list(map(str, words))) == 0
        printed, found = capsys.readouterr().out, {}
        for title, table in re.findall(r"^(.+)\n\n((?:\|.*\n)+)", printed, re.MULTILINE):
            rows = [line.strip("|").split("|")[1:] for line in table.splitlines()[2:]]
            cells = [[cell.strip().rpartition(" ") for cell in row] for row in rows]
            found[title] = [[(word, float(distance)) for word, _, distance in row] for row in cells]
        return found, printed

    return run


def test_initial_context_is_its_words_at_distance_zero(finish_run, interpret):
    found, printed = interpret(finish_run("CoOp", "OPTIM.LR", "1e-12"))
    rows = found["CoOp"]
    assert [row[0] for row in rows] == [("a", 0.0), ("photo", 0.0), ("of", 0.0), ("a", 0.0)]
    for row in rows:
        distances = [distance for _, distance in row]
        assert len(row) == 5 and distances == sorted(distances) and distances[1] > 0.01
    assert re.search(r"and the nearest other word: [0-9]\.[0-9]{3} \(median\)", printed)


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
    dpspg = finish_run("DPSPG").rename(tmp_path / "dpspg")
    spg = finish_run("SPG")
    (spg / "contexts.npz").unlink()
    for arguments, message in (
        ([tmp_path / "nowhere"], "nowhere"),
        ([zero_shot], "ZeroshotCLIP has no context"),
        ([zero_shot, "--images", image_folder / "red/across/0.png"], "ZeroshotCLIP generates no contexts"),
        ([dpspg], "generates two contexts for each image. Name images"),
        ([spg], "contexts.npz"),
        ([spg, "--images", "nowhere.png"], "nowhere.png"),
    ):
        capsys.readouterr()
        assert main(list(map(str, arguments))) == 1
        error = capsys.readouterr().err
        assert error.startswith("Error: ") and message in error and error.count("\n") == 1
