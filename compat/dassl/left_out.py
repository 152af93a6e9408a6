"""Import errors for the parts of Dassl.pytorch that this core leaves out. ``compat/NAMES.md`` lists them."""

import sys
from importlib.abc import MetaPathFinder

# Module -> its contents, and the names that the package above it exports.
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
    "dassl.metrics.distance": ("distances", "compute_distance_matrix cosine_distance euclidean_squared_distance"),
    "dassl.modeling.network": ("networks of DDAIG", "NETWORK_REGISTRY build_network"),
    "dassl.modeling.ops": ("building blocks of networks (MixStyle, DSBN, optimal transport ...)", ""),
}
# The registry and the base class of this package are here. Every other name in it is a network.
BACKBONES = "dassl.modeling.backbone"
NETWORKS = "backbones (ResNet, VGG, EfficientNet ...)"


def _error(name: str, contents: str) -> ImportError:
    from .utils.errors import UserImportError

    return UserImportError(
        f"{name} is not here: this Dassl-compatible core leaves out Dassl's own {contents}. Install Dassl.pytorch for "
        "them (https://github.com/KaiyangZhou/Dassl.pytorch), which then takes the place of this core."
    )


def missing_attribute(package: str, name: str) -> Exception:
    """Return the exception for a package's ``__getattr__`` to raise."""
    full = f"{package}.{name}"
    for module, (contents, names) in LEFT_OUT.items():
        if module.rpartition(".")[0] == package and name in names.split():
            return _error(full, contents)
    if package == BACKBONES and not name.startswith("_"):
        return _error(full, NETWORKS)
    return AttributeError(f"module {package!r} has no attribute {name!r}")


class Finder(MetaPathFinder):
    """Raises for modules that are left out. Python asks it last, for modules that no other finder has."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        for module, (contents, _) in [*LEFT_OUT.items(), (BACKBONES, (NETWORKS, ""))]:
            if fullname == module or fullname.startswith(f"{module}."):
                raise _error(fullname, contents)


def install() -> None:
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())
