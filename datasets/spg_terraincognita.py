"""TerraIncognita: 24,330 pictures of camera traps at four locations, 10 classes (Beery et al., ECCV 2018)."""

from dassl.data.datasets import DATASET_REGISTRY

from datasets.base import DomainGeneralizationDataset
from datasets.layouts import Layout


@DATASET_REGISTRY.register()
class SPG_TerraIncognita(DomainGeneralizationDataset):
    """TerraIncognita, DomainBed's locations and classes; see :class:`DomainGeneralizationDataset`."""

    dataset_dir = "terra_incognita"
    domains = ["location_100", "location_38", "location_43", "location_46"]
    codes = ["1", "2", "3", "4"]
    classes = ["bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel"]
    layouts = [
        Layout("DomainBed", "terra_incognita"),
        Layout("the authors'", "TerraIncognita", images="images"),
    ]
    image_counts = {"location_100": 4741, "location_38": 9736, "location_43": 3970, "location_46": 5883}
    absent_classes = True  # not every animal passes every camera
