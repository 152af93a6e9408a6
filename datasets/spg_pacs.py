"""PACS: 9,991 images of 7 classes as photos, paintings, cartoons and sketches (Li et al., ICCV 2017)."""

from dassl.data.datasets import DATASET_REGISTRY

from datasets.base import DomainGeneralizationDataset
from datasets.layouts import Layout


@DATASET_REGISTRY.register()
class SPG_PACS(DomainGeneralizationDataset):
    """PACS; see :class:`DomainGeneralizationDataset`."""

    dataset_dir = "pacs"
    domains = ["art_painting", "cartoon", "photo", "sketch"]
    codes = ["a", "c", "p", "s"]
    classes = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
    layouts = [
        Layout("Dassl/CoOp", "pacs", images="images"),
        Layout("DomainBed", "PACS"),
        Layout("the authors'", "PACS", images="images"),
    ]
    image_counts = {"art_painting": 2048, "cartoon": 2344, "photo": 1670, "sketch": 3929}
    skipped = {"sketch/dog/n02103406_4068-1.png"}
