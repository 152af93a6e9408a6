"""OfficeHome: 15,588 images of 65 classes in four domains (Venkateswara et al., CVPR 2017)."""

from dassl.data.datasets import DATASET_REGISTRY

from datasets.base import DomainGeneralizationDataset
from datasets.layouts import SPLIT, Layout

_PARTS = {"train": SPLIT, "val": SPLIT}  # Dassl's own split; 70/30 is taken inside each


@DATASET_REGISTRY.register()
class SPG_OfficeHome(DomainGeneralizationDataset):
    """OfficeHome; see :class:`DomainGeneralizationDataset`."""

    dataset_dir = "office_home"
    domains = ["art", "clipart", "product", "real_world"]
    codes = ["a", "c", "p", "r"]
    n_classes = 65
    layouts = [
        Layout("Dassl/CoOp", "office_home_dg", parts=_PARTS),
        Layout("DomainBed", "office_home"),
        Layout("the authors'", "OfficeHome", images="images", parts=_PARTS),
    ]
    image_counts = {"art": 2427, "clipart": 4365, "product": 4439, "real_world": 4357}
