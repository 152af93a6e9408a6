"""What is trained on what, and tested where: the protocols, their names, and the runs that they take."""

from pathlib import Path
from typing import NamedTuple

from common.errors import UserError


def protocol_name(source_domains, target_domains, trained_on=None):
    """ "multi-source", "single-source", "in-domain" when the domains tested are those trained on, or "cross-dataset".

    Args:
        source_domains, target_domains: full names.
        trained_on: the data set that the model was trained on, if it is not the one tested.
    """
    if trained_on:
        return "cross-dataset"
    if set(target_domains) <= set(source_domains):
        return "in-domain"
    return "single-source" if len(source_domains) == 1 else "multi-source"


def dataset_label(cfg):
    """The data set's name in folders: "SPG_PACS" -> "PACS"; a FolderDG goes by its folder's name."""
    name = cfg.DATASET.NAME.removeprefix("SPG_")
    return Path(cfg.DATASET.ROOT).resolve().name if name == "FolderDG" else name


class DataSet(NamedTuple):
    """A data set of a launch.

    Args:
        config: its config file.
        root: DATASET.ROOT.
        name: its name in folders and messages.
        domains: full names of all its domains.
        chosen: those that TARGETS or SOURCES name; all where they name none.
    """

    config: Path
    root: str
    name: str
    domains: list
    chosen: list


class Step(NamedTuple):
    """One run of a protocol, but for method and seed.

    Args:
        folder: its place below the method's folder.
        what: what it does, for messages.
        data: the DataSet that it trains or tests on.
        sources, targets: full names of domains.
        model: folder of the step whose model it tests; "" if it trains its own.
        tested_later: whether it only trains, and other steps test its model.
    """

    folder: str
    what: str
    data: DataSet
    sources: list
    targets: list
    model: str = ""
    tested_later: bool = False


def leave_one_domain_out(sets):
    """Train on all domains but one, test on that one; for each chosen domain."""
    (data,) = sets
    check_two_domains(data)
    return [
        Step(target, f"on {data.name}, target {target}", data, [d for d in data.domains if d != target], [target])
        for target in data.chosen
    ]


def single_source(sets):
    """Train on one domain, test on all others in one go; for each chosen domain."""
    (data,) = sets
    check_two_domains(data)
    return [
        Step(
            f"from_{source}", f"on {data.name}, source {source}", data, [source], [d for d in data.domains if d != source]
        )
        for source in data.chosen
    ]


def cross_dataset(sets):
    """Train on all domains of the first set, test on all domains of each other one."""
    first, *others = sets
    train = Step("cross/train", f"on {first.name}, all domains", first, first.domains, first.domains, tested_later=True)
    return [train] + [
        Step(
            f"cross/to_{other.name}",
            f"from {first.name} to {other.name}",
            other,
            other.domains,
            other.domains,
            model=train.folder,
        )
        for other in others
    ]


def check_two_domains(data):
    """Raise UserError unless there is a domain to train on and another one to test on."""
    if len(data.domains) < 2:
        raise UserError(
            f"{data.name} has one domain ({', '.join(data.domains)}), so there is none to test on. Its images can be "
            "trained on for a test on another set: cross.sh."
        )


# By the names of the launchers' files.
PROTOCOLS = {"main": leave_one_domain_out, "single": single_source, "cross": cross_dataset}
