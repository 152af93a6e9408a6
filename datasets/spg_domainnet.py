"""DomainNet: 586,575 images of 345 classes in six domains (Peng et al., ICCV 2019)."""

from dassl.data.datasets import DATASET_REGISTRY

from datasets.base import DomainGeneralizationDataset
from datasets.layouts import Layout


@DATASET_REGISTRY.register()
class SPG_DomainNet(DomainGeneralizationDataset):
    """DomainNet; see :class:`DomainGeneralizationDataset`.

    As published, 2 % of the images of each class are for training and 1 % for validation. The authors also
    test on these 3 % (DATASET.TEST_SUBSET published); by default a target domain is tested on all its images.
    """

    dataset_dir = "domainnet"
    domains = ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]
    codes = ["c", "i", "p", "q", "r", "s"]
    n_classes = 345
    layouts = [
        Layout("Dassl/CoOp", "domainnet"),
        Layout("DomainBed", "domain_net"),
        Layout("the authors'", "DomainNet", images="images"),
    ]
    image_counts = {
        "clipart": 48129,
        "infograph": 51605,
        "painting": 72266,
        "quickdraw": 172500,
        "real": 172947,
        "sketch": 69128,
    }
    absent_classes = True  # a few classes have no image in one of the domains
    splits_cover_all = False

    @staticmethod
    def split_sizes(n: int) -> tuple[int, int]:
        """2 % and 1 % of ``n``, both rounded up."""
        return -(-2 * n // 100), -(-n // 100)
