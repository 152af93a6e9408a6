"""Choose the pictures of Caltech Camera Traps that are TerraIncognita, as DomainBed does."""

import json
from collections import defaultdict
from pathlib import Path, PurePosixPath

from common.errors import UserError
from datasets.benchmarks import SPG_TerraIncognita as Terra


def select_images(folder: Path, source: Path) -> dict[str, list[str]]:
    """Map names of pictures to their places "<domain>/<class>/<file name>", by all annotation files below a folder.

    The files are in the format COCO Camera Traps. A picture that shows animals of two classes has two places.

    Args:
        source: the archive that the files are from, for messages.
    """
    files = sorted(path for path in folder.rglob("*.json") if not path.name.startswith("."))
    if not files:
        raise UserError(f"{source} holds no annotation files (*.json). Download it again.")
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
                if domain in Terra.domains and category in Terra.classes:
                    places[name].add(f"{domain}/{category}/{name}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path.name} in {source} is no annotation file in the format COCO Camera Traps: "
                f"{type(error).__name__} {error}. Download the archive again."
            ) from error
    return {name: sorted(found) for name, found in places.items()}
