"""Which pictures of Caltech Camera Traps make up TerraIncognita, by its annotations: DomainBed's choice."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from common.errors import UserError


def select_images(folder: Path, domains: Iterable[str], classes: Iterable[str], source: Path) -> dict[str, list[str]]:
    """Where in TerraIncognita each picture goes, from all annotation files in ``folder``.

    The files are in the format "COCO Camera Traps": ``images`` (id, file_name, location), ``annotations`` (image_id,
    category_id), ``categories`` (id, name). Each is gone through once. As in DomainBed, a picture that shows animals
    of two classes goes into both; several boxes of one class count once, and a picture that several files list too.

    Args:
        folder: with ``*.json``, at any depth.
        domains: ``"location_38"`` ...
        classes: names of categories.
        source: the archive that the files are from, for messages.

    Returns:
        from file names of pictures to sorted lists of ``"<domain>/<class>/<file name>"``.

    Raises:
        UserError: no annotation file, or a damaged one.
    """
    files = sorted(path for path in folder.rglob("*.json") if not path.name.startswith("."))
    if not files:
        raise UserError(f"{source} holds no annotation files (*.json). Get it again.")
    domains, classes = set(domains), set(classes)
    places: dict[str, set[str]] = defaultdict(set)
    for path in files:
        try:
            content = json.loads(path.read_bytes())
            categories = {category["id"]: category["name"] for category in content["categories"]}
            pictures = {
                image["id"]: (f"location_{image['location']}", PurePosixPath(image["file_name"]).name)
                for image in content["images"]
            }
            for annotation in content["annotations"]:
                domain, name = pictures[annotation["image_id"]]
                category = categories[annotation["category_id"]]
                if domain in domains and category in classes:
                    places[name].add(f"{domain}/{category}/{name}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path.name} in {source} is no annotation file in the format COCO Camera Traps: "
                f"{type(error).__name__} {error}. Get the archive again."
            ) from error
    return {name: sorted(found) for name, found in places.items()}
