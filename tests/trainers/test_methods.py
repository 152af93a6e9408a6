"""The table of methods agrees with the trainers, configs, launchers and README."""

import re
import subprocess
import sys

import pytest
from quick_run import REPOSITORY

from trainers.methods import METHODS, MethodError, find_method, trainer_name

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_every_trainer_of_ours_is_a_row_and_every_row_a_trainer():
    from dassl.engine import TRAINER_REGISTRY

    import trainers.all

    registered = {name: TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names()}
    ours = {name for name, trainer in registered.items() if trainer.__module__.startswith(f"{trainers.__name__}.")}
    assert ours == {method.trainer for method in METHODS}
    assert len({method.name for method in METHODS}) == len(METHODS) == len(ours)


def test_every_row_has_a_default_config():
    folders = {path.parent.name for path in (REPOSITORY / "configs/trainers").glob("*/default.yaml")}
    assert {method.config_folder for method in METHODS} == folders


def test_zero_shot_methods_select_no_epoch(train, tmp_path):
    from common.run import read_results

    for method in METHODS:
        if method.launchers and method.name != "linear_probe":  # it fits one epoch
            assert train(method.trainer, "red", flags=["--output-dir", method.name]) == 0
            learned = read_results(tmp_path / method.name / "results.json")["selection"]
            assert (learned is not None) == method.learns


def test_find_method_accepts_short_name_and_trainer():
    assert find_method("spg") is find_method("SPG")
    assert trainer_name("linear_probe") == "LinearProbe"
    assert trainer_name("nonsense") == "nonsense"
    with pytest.raises(MethodError, match="Unknown trainer 'nonsense'; accepted: CoCoOp, "):
        find_method("nonsense")
    with pytest.raises(MethodError, match=r"Unknown trainer 'mapel'; .*\. Did you mean MaPLe\?"):
        find_method("mapel")


def test_methods_table_imports_nothing_heavy():
    code = "import sys, trainers.methods; sys.exit(bool({'torch', 'numpy', 'dassl', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_readme_lists_every_launcher_and_the_methods_of_a_comparison():
    rows = re.findall(r"^\| `(\w+)` \| .* \| (?:frozen|learned|learned \(ViT\)) \| .* \|$", README, re.MULTILINE)
    assert rows == [method.name for method in METHODS if method.launchers]
    compared = ",".join(method.name for method in METHODS if method.compared)
    assert f"| `METHODS` | methods of `compare.sh` | `{compared}` |" in README


def test_train_help_lists_all_methods(capsys):
    import train

    with pytest.raises(SystemExit):
        train.parse_args(["--help"])
    words = re.split(r"[\s,]+", capsys.readouterr().out)
    assert {method.trainer for method in METHODS} <= set(words)
