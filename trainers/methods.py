"""The one table of methods: launchers, comparisons, help texts and the README's table are derived from it.

It imports no PyTorch and no Dassl, so that a command line that is only asked for its help answers at once.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from common.errors import UserError
from common.startup import REPOSITORY

# Leave one domain out; train on one domain, test on each other; train on one data set, test on others.
PROTOCOLS = ("multi", "single", "cross")
NOISE = "noise, drawn for each image"
BATCH = "the other images of its batch"


class Backbones(Enum):
    """Which CLIPs a method takes, by their image towers."""

    ANY = "any"
    VIT = "ViT"


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: short name, by which command lines and folders of launchers go.
        trainer: its trainer, as registered with Dassl.
        what: what it does, in a line.
        config_folder: where its configs lie in configs/trainers/.
        protocols: those of PROTOCOLS that it can be run under.
        backbones: which CLIPs it takes.
        image_tower_learns: whether training changes the features of images, so that none can be encoded beforehand.
        learns: whether anything is trained; what learns nothing selects no model and sees no shots.
        launchers: whether scripts/<name>/ has a launcher for each protocol.
        compared: whether scripts/compare.sh runs it unless others are named.
        depends_on: what a prediction depends on beside the image and what was learned; "": nothing.
        last_model: what the model of its last step is by the method itself, so that it takes no choice of an epoch; "":
            that epoch's.
    """

    name: str
    trainer: str
    what: str
    config_folder: str
    protocols: tuple[str, ...] = PROTOCOLS
    backbones: Backbones = Backbones.ANY
    image_tower_learns: bool = False
    learns: bool = True
    launchers: bool = True
    compared: bool = True
    depends_on: str = ""
    last_model: str = ""

    def config_file(self, name: str) -> Path:
        """Where the config of this method by some name would lie."""
        return REPOSITORY / "configs" / "trainers" / self.config_folder / f"{name}.yaml"

    def check_protocol(self, protocol: str) -> None:
        """Raise MethodError if the method cannot be run under a protocol."""
        if protocol not in self.protocols:
            has = f"only {', '.join(self.protocols)}" if self.protocols else "none, so that train.py alone runs it"
            others = ", ".join(method.name for method in METHODS if method.launchers and protocol in method.protocols)
            raise MethodError(f"{self.trainer} has no protocol {protocol}, {has}. Methods that have it: {others}.")

    def check_backbone(self, name: str, is_vit: bool) -> None:
        """Raise BackboneError if the method cannot take a CLIP of that name, whose image tower is a ViT or another."""
        if self.backbones is Backbones.VIT and not is_vit:
            others = ", ".join(
                method.name for method in METHODS if method.launchers and method.backbones is Backbones.ANY
            )
            raise BackboneError(
                f"{self.trainer} puts prompts into the image tower, which has to be a ViT of CLIP's kind, and that of "
                f"the backbone {name} is another network. Name one that is, such as ViT-B/16. Methods that take this "
                f"one: {others} (vp is the one that learns something on the images' side)."
            )


class MethodError(UserError):
    """A method cannot be run as asked; others of a comparison can."""


class BackboneError(MethodError):
    """A method cannot take the backbone; a comparison leaves it out."""


# In the order of a comparison; stages of a method, which are run by themselves only by train.py, come last.
METHODS = (
    Method(
        "zsclip",
        "ZeroshotCLIP",
        'zero-shot CLIP, "a photo of a <class>."; learns nothing',
        "ZeroshotCLIP",
        learns=False,
    ),
    Method(
        "zsclip2",
        "ZeroshotCLIP2",
        "zero-shot CLIP with CoOp's ensemble of templates; learns nothing",
        "ZeroshotCLIP2",
        learns=False,
        launchers=False,
    ),
    Method(
        "linear_probe",
        "LinearProbe",
        "logistic regression on the frozen image features",
        "LinearProbe",
        protocols=("multi", "single"),
    ),
    Method("coop", "CoOp", "one context for all source domains", "CoOp"),
    Method("cocoop", "CoCoOp", "a context for each image, shifted by a meta-net", "CoCoOp"),
    Method("kgcoop", "KgCoOp", "CoOp, kept near the text features of fixed prompts", "KgCoOp"),
    Method(
        "dpl",
        "DPL",
        "a context for each batch, the mean of what an MLP makes of its images",
        "DPL",
        depends_on=BATCH,
    ),
    Method(
        "vp",
        "VP",
        "learned pixels, added to all images",
        "VP",
        image_tower_learns=True,
        depends_on="the place of its patch, drawn for each image (METHOD random)",
    ),
    Method(
        "vpt",
        "VPT",
        "learned tokens in the image tower, a ViT",
        "VPT",
        backbones=Backbones.VIT,
        image_tower_learns=True,
    ),
    Method(
        "maple",
        "MaPLe",
        "coupled prompts in both towers, the image tower a ViT",
        "MaPLe",
        backbones=Backbones.VIT,
        image_tower_learns=True,
    ),
    Method(
        "promptsrc",
        "PromptSRC",
        "prompts in both towers, the image tower a ViT, kept near the frozen CLIP",
        "PromptSRC",
        backbones=Backbones.VIT,
        image_tower_learns=True,
        last_model="a weighted mean over its epochs",
    ),
    Method(
        "dpspg",
        "DPSPG",
        "SPG's successor: trains the missing labels of both signs, then transformers, then tests",
        "DPSPG",
    ),
    Method(
        "spg",
        "SPG",
        "trains the prompt labels of the source domains that are missing, then the CGAN, then tests",
        "SPG_CGAN",
        depends_on=NOISE,
    ),
    Method(
        "spg_coop",
        "SPG_CoOp",
        "stage I of SPG alone: the prompt label of one domain",
        "SPG_CoOp",
        protocols=(),
        launchers=False,
        compared=False,
    ),
    Method(
        "spg_cgan",
        "SPG_CGAN",
        "stage II of SPG alone, on labels that exist",
        "SPG_CGAN",
        launchers=False,
        compared=False,
        depends_on=NOISE,
    ),
    Method(
        "dpspg_coop",
        "DPSPG_CoOp",
        "stage I of DPSPG alone: the positive and the negative prompt label of one domain",
        "DPSPG_CoOp",
        protocols=(),
        launchers=False,
        compared=False,
    ),
    Method(
        "dpspg_transformer",
        "DPSPG_TRANSFORMER",
        "stage II of DPSPG alone, on labels that exist",
        "DPSPG",
        launchers=False,
        compared=False,
    ),
)


def find_method(name: str) -> Method:
    """The Method that goes by a short name or by its trainer's.

    Raises:
        MethodError: there is none.
    """
    for method in METHODS:
        if name in (method.name, method.trainer):
            return method
    accepted = ", ".join(sorted(method.trainer for method in METHODS))
    raise MethodError(f"Unknown trainer {name!r}; accepted: {accepted}.{_meant(name)}")


def method_of(trainer: str) -> Method | None:
    """The Method of a trainer; None: of one that was added by others."""
    return next((method for method in METHODS if method.trainer == trainer), None)


def check_methods(names: Iterable[str]) -> None:
    """Raise UserError unless these name methods, at least one, by short names or by their trainers'."""
    names = list(names)
    unknown = [name for name in names if trainer_name(name) not in {method.trainer for method in METHODS}]
    if names and not unknown:
        return
    found = ", ".join(map(repr, unknown)) or "nothing"
    accepted = ", ".join(method.name for method in METHODS if method.protocols)
    raise UserError(
        f"METHODS names {found}; accepted: some of {accepted}, with commas between (or the names of their trainers)."
        + "".join(map(_meant, unknown))
    )


def _meant(name: str) -> str:
    """A question whether the nearest name was meant; "" where none is near."""
    names = {known.lower(): known for method in METHODS for known in (method.name, method.trainer)}
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return f" Did you mean {names[near[0]]}?" if near else ""


def trainer_name(name: str) -> str:
    """The trainer that a short name stands for; any other name as it is."""
    return next((method.trainer for method in METHODS if method.name == name), name)
