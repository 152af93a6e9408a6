"""The five published benchmarks, each declared by its domains, classes, layouts and known numbers of images."""

from dassl.data.datasets import DATASET_REGISTRY

from datasets.base import DomainGeneralizationDataset
from datasets.layouts import SPLIT, TRAIN, VAL, Layout

_VLCS_FOLDERS = ("CALTECH", "LABELME", "PASCAL", "SUN")
_VLCS_PARTS = {"full": TRAIN, "test": VAL}
_OFFICE_HOME_PARTS = {"train": SPLIT, "val": SPLIT}  # Dassl's own split; 70/30 is taken inside each


@DATASET_REGISTRY.register()
class SPG_PACS(DomainGeneralizationDataset):
    """Photos, paintings, cartoons and sketches (Li et al., ICCV 2017)."""

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


@DATASET_REGISTRY.register()
class SPG_VLCS(DomainGeneralizationDataset):
    """Photos of four data sets (Fang et al., ICCV 2013)."""

    domains = ["caltech", "labelme", "pascal", "sun"]
    codes = ["c", "l", "p", "s"]
    classes = ["bird", "car", "chair", "dog", "person"]
    class_aliases = {"0": "bird", "1": "car", "2": "chair", "3": "dog", "4": "person"}
    layouts = [
        Layout("Dassl/CoOp", "VLCS", parts=_VLCS_PARTS, domain_folders=_VLCS_FOLDERS),
        Layout("DomainBed", "VLCS", domain_folders=("Caltech101", "LabelMe", "VOC2007", "SUN09")),
        Layout("the authors'", "VLCS", images="images", parts=_VLCS_PARTS, domain_folders=_VLCS_FOLDERS),
    ]
    image_counts = {"caltech": 1415, "labelme": 2656, "pascal": 3376, "sun": 3282}


@DATASET_REGISTRY.register()
class SPG_OfficeHome(DomainGeneralizationDataset):
    """Things in offices and homes (Venkateswara et al., CVPR 2017)."""

    domains = ["art", "clipart", "product", "real_world"]
    codes = ["a", "c", "p", "r"]
    n_classes = 65
    layouts = [
        Layout("Dassl/CoOp", "office_home_dg", parts=_OFFICE_HOME_PARTS),
        Layout("DomainBed", "office_home"),
        Layout("the authors'", "OfficeHome", images="images", parts=_OFFICE_HOME_PARTS),
    ]
    image_counts = {"art": 2427, "clipart": 4365, "product": 4439, "real_world": 4357}


@DATASET_REGISTRY.register()
class SPG_TerraIncognita(DomainGeneralizationDataset):
    """Pictures of camera traps, DomainBed's locations and classes (Beery et al., ECCV 2018)."""

    domains = ["location_100", "location_38", "location_43", "location_46"]
    codes = ["1", "2", "3", "4"]
    classes = ["bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel"]
    layouts = [
        Layout("DomainBed", "terra_incognita"),
        Layout("the authors'", "TerraIncognita", images="images"),
    ]
    image_counts = {"location_100": 4741, "location_38": 9736, "location_43": 3970, "location_46": 5883}
    has_absent_classes = True  # not every animal passes every camera


@DATASET_REGISTRY.register()
class SPG_DomainNet(DomainGeneralizationDataset):
    """Clipart, infographics, paintings, drawings, photos and sketches (Peng et al., ICCV 2019).

    As published, 2 % of the images of each class are for training and 1 % for validation.
    """

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
    has_absent_classes = True  # a few classes have no image in one of the domains
    splits_cover_all = False

    @staticmethod
    def split_sizes(n: int) -> tuple[int, int]:
        """2 % and 1 % of `n`, both rounded up."""
        return -(-2 * n // 100), -(-n // 100)
