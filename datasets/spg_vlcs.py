"""VLCS: 10,729 images of 5 classes from four data sets (Fang et al., ICCV 2013)."""

from dassl.data.datasets import DATASET_REGISTRY

from datasets.base import DomainGeneralizationDataset
from datasets.layouts import TRAIN, VAL, Layout

_FOLDERS = ("CALTECH", "LABELME", "PASCAL", "SUN")
_PARTS = {"full": TRAIN, "test": VAL}


@DATASET_REGISTRY.register()
class SPG_VLCS(DomainGeneralizationDataset):
    """VLCS; see :class:`DomainGeneralizationDataset`.

    In layouts with these folders, ``full`` is the train split and ``test`` the val split.
    """

    dataset_dir = "vlcs"
    domains = ["caltech", "labelme", "pascal", "sun"]
    codes = ["c", "l", "p", "s"]
    classes = ["bird", "car", "chair", "dog", "person"]
    class_aliases = {"0": "bird", "1": "car", "2": "chair", "3": "dog", "4": "person"}
    layouts = [
        Layout("Dassl/CoOp", "VLCS", parts=_PARTS, domain_folders=_FOLDERS),
        Layout("DomainBed", "VLCS", domain_folders=("Caltech101", "LabelMe", "VOC2007", "SUN09")),
        Layout("the authors'", "VLCS", images="images", parts=_PARTS, domain_folders=_FOLDERS),
    ]
    image_counts = {"caltech": 1415, "labelme": 2656, "pascal": 3376, "sun": 3282}
