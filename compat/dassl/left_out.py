"""What Dassl.pytorch has and this core leaves out: importing it says so. ``compat/NAMES.md`` is the table to read."""

import sys
from importlib.abc import MetaPathFinder

# Package -> what it holds, and the names that the package above it passes on.
LEFT_OUT = {
    "dassl.engine.da": ("methods of domain adaptation", "ADDA AdaBN CDAC DAEL DANN M3SDA MCD MME SE SourceOnly"),
    "dassl.engine.dg": ("methods of domain generalisation", "CrossGrad DAELDG DDAIG DomainMix Vanilla"),
    "dassl.engine.ssl": ("methods of semi-supervised learning", "EntMin FixMatch MeanTeacher MixMatch SupBaseline"),
    "dassl.data.datasets.da": (
        "data sets of domain adaptation",
        "CIFARSTL Digit5 DomainNet Office31 OfficeHome VisDA17 miniDomainNet",
    ),
    "dassl.data.datasets.dg": (
        "data sets of domain generalisation",
        "CIFAR100C CIFAR10C Camelyon17 DigitSingle DigitsDG FMoW IWildCam OfficeHomeDG PACS VLCS",
    ),
    "dassl.data.datasets.ssl": ("data sets of semi-supervised learning", "CIFAR10 CIFAR100 STL10 SVHN"),
    "dassl.modeling.ops": ("building blocks of networks (MixStyle, DSBN, optimal transport ...)", ""),
}
# Of this package the registry and the base class are here; whatever else is asked for is one of the networks.
BACKBONES = "dassl.modeling.backbone"
NETWORKS = "backbones (ResNet, VGG, EfficientNet ...)"


def left_out(name: str, holds: str) -> ImportError:
    """Return the error that says of the module or object ``name`` that it is left out, and all that it belongs to."""
    from .utils.errors import UserImportError

    return UserImportError(
        f"{name} is not here: this Dassl-compatible core leaves out Dassl's own {holds}. Install Dassl.pytorch for "
        "them (https://github.com/KaiyangZhou/Dassl.pytorch), which then takes the place of this core."
    )


def missing_attribute(package: str, name: str) -> Exception:
    """Return what the ``__getattr__`` of a package has to raise for a name that the package does not have."""
    full = f"{package}.{name}"
    for module, (holds, names) in LEFT_OUT.items():
        if module.rpartition(".")[0] == package and name in names.split():
            return left_out(full, holds)
    if package == BACKBONES and not name.startswith("_"):
        return left_out(full, NETWORKS)
    return AttributeError(f"module {package!r} has no attribute {name!r}")


class Finder(MetaPathFinder):
    """Asked for modules that nobody else found: raises for those that are left out."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """Return None, so that the import fails as usual, or raise the error that explains it."""
        for module, (holds, _) in LEFT_OUT.items():
            if fullname == module or fullname.startswith(f"{module}."):
                raise left_out(fullname, holds)
        if fullname.startswith(f"{BACKBONES}."):
            raise left_out(fullname, NETWORKS)
        return None


def install() -> None:
    """Have ``import`` ask the finder where it finds nothing."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())
