"""The table of methods, for launchers, comparisons and help texts. A test compares README's table with it.

It imports neither PyTorch nor Dassl, so `--help` answers at once.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.errors import UserError
from common.startup import REPOSITORY

# Leave one domain out; train on one domain, test on each other; train on one data set, test on others.
PROTOCOLS = ("multi", "single", "cross")
NOISE = "noise, drawn for each image"


class MethodError(UserError):
    """A method cannot run with these settings; the other methods of a comparison can."""


class BackboneError(MethodError):
    """A method cannot take the backbone; a comparison leaves it out."""


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    name: str  # in command lines and folders of launchers
    trainer: str  # name in Dassl's registry
    summary: str
    protocols: tuple[str, ...] = PROTOCOLS
    configs: str = ""  # folder of its configs in configs/trainers/; "": the trainer's name
    needs_vit: bool = False  # the image tower must be a ViT of CLIP's layout
    compared: bool = True  # scripts/compare.sh runs it by default
    depends_on: str = ""  # further inputs of a prediction besides image and model, for reports; "": none
    depends_on_batch: bool = False  # a prediction depends on the other images of its batch
    last_model: str = ""  # the model of the last step, if it is not the last epoch's, so that no epoch is selected

    @property
    def config_folder(self) -> str:
        return self.configs or self.trainer

    def config_file(self, name: str) -> Path:
        """The path of the method's config with this name."""
        return REPOSITORY / "configs" / "trainers" / self.config_folder / f"{name}.yaml"

    def check_protocol(self, protocol: str) -> None:
        """Raise MethodError if the method has no launcher for a protocol."""
        if protocol not in self.protocols:
            accepted = f"Use {', '.join(self.protocols)}" if self.protocols else "Run it by train.py"
            raise MethodError(f"{self.trainer} has no protocol {protocol}. {accepted}, or another method.")

    def check_image_tower(self, name: str, is_vit: bool) -> None:
        """Raise BackboneError if the method needs a ViT and the backbone has another image tower."""
        if self.needs_vit and not is_vit:
            raise BackboneError(
                f"{self.trainer} puts prompts into the image tower, which must be a ViT of CLIP's layout, and the "
                f"backbone {name} has another. Name one such as ViT-B/16, or use vp, which learns pixels."
            )


_stage = partial(Method, compared=False)  # a stage of a method, which only train.py runs by itself

# In the order of a comparison.
METHODS = (
    Method("zsclip", "ZeroshotCLIP", 'zero-shot CLIP, "a photo of a <class>."; learns nothing'),
    Method(
        "zsclip2",
        "ZeroshotCLIP2",
        "zero-shot CLIP with CoOp's ensemble of templates; learns nothing",
    ),
    Method(
        "linear_probe", "LinearProbe", "logistic regression on the frozen image features", protocols=("multi", "single")
    ),
    Method("coop", "CoOp", "one context for all source domains"),
    Method("cocoop", "CoCoOp", "a context for each image, shifted by a meta-net"),
    Method("kgcoop", "KgCoOp", "CoOp, regularised towards the text features of fixed prompts"),
    Method(
        "dpl",
        "DPL",
        "a context for each batch: the mean of an MLP's outputs for its images",
        depends_on="the other images of its batch",
        depends_on_batch=True,
    ),
    Method(
        "vp",
        "VP",
        "learned pixels, added to all images",
        depends_on="the place of its patch, drawn for each image (METHOD random)",
    ),
    Method("vpt", "VPT", "learned tokens in the image tower, a ViT", needs_vit=True),
    Method("maple", "MaPLe", "coupled prompts in both towers, the image tower a ViT", needs_vit=True),
    Method(
        "promptsrc",
        "PromptSRC",
        "prompts in both towers, the image tower a ViT, regularised towards the frozen CLIP",
        needs_vit=True,
        last_model="a weighted mean over its epochs",
    ),
    Method("dpspg", "DPSPG", "SPG's successor: trains the missing labels of both signs, then transformers, then tests"),
    Method(
        "spg",
        "SPG",
        "trains the prompt labels of the source domains that are missing, then the CGAN, then tests",
        configs="SPG_CGAN",
        depends_on=NOISE,
    ),
    _stage("spg_coop", "SPG_CoOp", "stage I of SPG alone: the prompt label of one domain", protocols=()),
    _stage("spg_cgan", "SPG_CGAN", "stage II of SPG alone, on labels that exist", depends_on=NOISE),
    _stage("dpspg_coop", "DPSPG_CoOp", "stage I of DPSPG alone: both prompt labels of one domain", protocols=()),
    _stage("dpspg_transformer", "DPSPG_TRANSFORMER", "stage II of DPSPG alone, on labels that exist", configs="DPSPG"),
)


def find_method(name: str) -> Method:
    """The Method with a short name or a trainer's name; raises MethodError if there is none."""
    for method in METHODS:
        if name in (method.name, method.trainer):
            return method
    accepted = ", ".join(sorted(method.trainer for method in METHODS))
    raise MethodError(f"Unknown trainer {name!r}; accepted: {accepted}.{_hint(name)}")


def method_of(trainer: str) -> Method | None:
    """The Method of a trainer, or None for a trainer that is not in METHODS."""
    return next((method for method in METHODS if method.trainer == trainer), None)


def check_methods(names: Iterable[str]) -> None:
    """Raise UserError unless METHODS has one or more known names."""
    names = list(names)
    unknown = [name for name in names if method_of(trainer_name(name)) is None]
    if unknown or not names:
        found = ", ".join(map(repr, unknown)) or "nothing"
        accepted = ", ".join(method.name for method in METHODS if method.protocols)
        hints = "".join(map(_hint, unknown))
        raise UserError(f"METHODS names {found}; accepted: some of {accepted}, with commas between.{hints}")


def trainer_name(name: str) -> str:
    """The trainer of a short name; any other name unchanged."""
    return next((method.trainer for method in METHODS if method.name == name), name)


def _hint(name: str) -> str:
    names = {known.lower(): known for method in METHODS for known in (method.name, method.trainer)}
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return f" Did you mean {names[near[0]]}?" if near else ""
