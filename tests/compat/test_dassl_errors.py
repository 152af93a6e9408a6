"""Errors are messages for the user, and the exceptions that clients of Dassl catch."""

import json
import pickle
import sys

import pytest
import torch
from dassl.config import get_cfg_default
from dassl.data import DatasetWrapper
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import DatasetBase, Datum, build_dataset
from dassl.data.samplers import build_sampler
from dassl.data.transforms import build_transform
from dassl.engine import TrainerBase, build_trainer
from dassl.evaluation import Classification, build_evaluator
from dassl.modeling import build_backbone, build_head, build_network
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    RegistryError,
    UserAssertionError,
    UserError,
    UserFileNotFoundError,
    UserImportError,
    UserOSError,
    UserRuntimeError,
    UserTypeError,
    UserValueError,
    check_availability,
    listdir_nohidden,
    load_checkpoint,
    load_pretrained_weights,
    open_specified_layers,
    read_image,
    read_json,
    resume_from_checkpoint,
)
from dassl.utils import errors as errors_module
from torch import nn

from common.errors import command, user_errors


def cfg_with(**keys):
    cfg = get_cfg_default()
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def optim(**keys):
    return cfg_with(**{f"OPTIM__{key}": value for key, value in keys.items()}).OPTIM


def loaded_base():
    trainer = TrainerBase()
    trainer.register_model("net", nn.Linear(1, 1))
    return trainer


def domains():
    return type("Two", (DatasetBase,), {"domains": ["a", "b"], "__init__": lambda self: None})()


# What clients catch: the kind of Dassl.pytorch, and something that raises it.
MISSING = [
    lambda: load_checkpoint("/none"),
    lambda: load_pretrained_weights(nn.Linear(1, 1), "/none"),
    lambda: resume_from_checkpoint("/none", nn.Linear(1, 1)),
    lambda: loaded_base().load_model("/none"),
    lambda: loaded_base().load_model("/none", epoch=3),
    lambda: read_json("/none"),
    lambda: listdir_nohidden("/none"),
    lambda: read_image("/none.jpg"),
]
VALUES = [
    lambda: check_availability("c", ["a", "b"]),
    lambda: build_trainer(cfg_with(TRAINER__NAME="none")),
    lambda: build_dataset(cfg_with(DATASET__NAME="none")),
    lambda: build_evaluator(cfg_with(TEST__EVALUATOR="none")),
    lambda: build_backbone("none"),
    lambda: build_head("none"),
    lambda: build_network("none"),
    lambda: build_sampler("none"),
    lambda: build_optimizer(nn.Linear(1, 1), optim(NAME="none")),
    lambda: build_lr_scheduler(build_optimizer(nn.Linear(1, 1), optim()), optim(LR_SCHEDULER="none")),
    lambda: build_lr_scheduler(build_optimizer(nn.Linear(1, 1), optim()), optim(WARMUP_EPOCH=1, WARMUP_TYPE="none")),
    lambda: domains().is_input_domain_valid(["c"]),
    lambda: DatasetWrapper(cfg_with(DATALOADER__K_TRANSFORMS=2), [], is_train=True),
    lambda: build_sampler("RandomClassSampler", data_source=[Datum(__file__)], batch_size=1, n_ins=2),
    lambda: build_sampler("RandomDomainSampler", data_source=[Datum(__file__)], batch_size=4, n_domain=2),
]
ASSERTIONS = [
    lambda: Datum("/none.jpg"),
    lambda: Datum(1),
    lambda: build_transform(get_cfg_default(), choices=["none"]),
    lambda: loaded_base().get_model_names("none"),
    lambda: open_specified_layers(nn.Sequential(), "none"),
    lambda: build_data_loader(get_cfg_default(), data_source=[]),
    lambda: build_sampler("SeqDomainSampler", data_source=[Datum(__file__), Datum(__file__, 0, 1)], batch_size=3),
    lambda: build_sampler("RandomClassSampler", data_source=[Datum(__file__)], batch_size=8, n_ins=2),
]
OTHERS = [
    (TypeError, lambda: build_optimizer([], optim(STAGED_LR=True))),
    (KeyError, lambda: build_transform(cfg_with(INPUT__INTERPOLATION="none"))),
    (RuntimeError, lambda: load_into_another_model()),
    (OSError, lambda: read_image(__file__)),
    (ValueError, lambda: read_json(__file__)),
]


def load_into_another_model():
    from dassl.utils.torchtools import load_weights

    load_weights(nn.Linear(1, 1), nn.Linear(2, 2).state_dict(), "a file")


@pytest.mark.parametrize(
    ("kind", "raising"),
    [(FileNotFoundError, f) for f in MISSING]
    + [(ValueError, f) for f in VALUES]
    + [(AssertionError, f) for f in ASSERTIONS]
    + OTHERS,
)
def test_clients_catch_what_dassl_raises(kind, raising):
    with pytest.raises(kind) as caught:
        raising()
    # The user gets the same exception as one message.
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, user_errors())
    assert len(str(caught.value)) > 20
    assert not str(caught.value).startswith("'")


def test_asserts_that_are_no_fault_of_the_user():
    for raising in (
        lambda: Classification(cfg_with(TEST__PER_CLASS_RESULT=True)),
        lambda: loaded_base().register_model("net", nn.Linear(1, 1)),
    ):
        with pytest.raises(AssertionError):
            raising()


KINDS = [
    UserError,
    UserFileNotFoundError,
    UserOSError,
    UserValueError,
    UserTypeError,
    UserAssertionError,
    UserRuntimeError,
    UserImportError,
    RegistryError,
]


def test_all_kinds_are_listed():
    found = {value for value in vars(errors_module).values() if isinstance(value, type)}
    assert found == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_shows_its_message_and_travels_between_processes(kind):
    error = kind("It's gone.")
    assert str(error) == "It's gone."
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (kind, "It's gone.")
    # What DataLoader makes of it, see torch._utils.ExceptionWrapper.
    name = f"{kind.__module__}.{kind.__qualname__}"
    wrapped = f"Caught {kind.__name__} in DataLoader worker process 0.\nTraceback ...\n{name}: It's gone.\n"
    assert str(kind(wrapped)) == "It's gone."


def test_a_real_worker_passes_the_kind_on(cfg):
    cfg.DATALOADER.NUM_WORKERS = 1
    source = build_dataset(cfg).train_x
    source[0]._impath = "/none.jpg"
    loader = build_data_loader(cfg, data_source=source, batch_size=2, tfm=build_transform(cfg))
    with pytest.raises(FileNotFoundError, match=r"^Image not found: /none\.jpg\. Check DATASET\.ROOT"):
        list(loader)


@pytest.mark.parametrize("raising", [MISSING[0], VALUES[1], ASSERTIONS[0], OTHERS[2][1]])
def test_a_script_prints_one_message(raising, capsys):
    @command
    def main(argv=None):
        raising()

    assert main() == 1
    message = capsys.readouterr().err
    assert message.startswith("Error: ")
    assert "Traceback" not in message


# -- nothing is asked of a replaced stdout ----------------------------------------------------------


class ClientsLogger:
    """A stdout that can do two things, as Dassl's and its copies in other repositories."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_training_on_a_stdout_that_can_only_write_and_flush(cfg, monkeypatch, tmp_path):
    import test_dassl_engine  # noqa: F401 (registers TinyX)
    from dassl.utils import setup_logger

    logger = ClientsLogger()
    monkeypatch.setattr(sys, "stdout", logger)
    setup_logger(str(tmp_path / "log"))  # our own in front of theirs
    print("begun")
    assert not hasattr(sys.stdout, "isatty")
    sys.stdout.close()
    monkeypatch.setattr(sys, "stdout", logger)
    cfg.TRAINER.NAME = "TinyX"
    cfg.VERBOSE = True
    build_trainer(cfg).train()
    assert logger.text.startswith("begun\n")
    assert "* accuracy: " in logger.text
    assert "Elapsed: " in logger.text


def test_json_and_torch_are_what_is_underneath(tmp_path):
    """The causes are there for those who look."""
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError) as caught:
        read_json(tmp_path / "bad.json")
    assert isinstance(caught.value.__cause__, json.JSONDecodeError)
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "w")
    (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[:100])
    with pytest.raises(RuntimeError, match="is damaged"):
        load_checkpoint(str(tmp_path / "w"))
