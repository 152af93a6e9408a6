"""A labelled image, and the base class of data sets."""

import os.path as osp
import random
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from operator import attrgetter

from dassl.utils.errors import UserAssertionError, UserImportError, UserOSError, UserValueError
from dassl.utils.registry import check_availability
from dassl.utils.tools import mkdir_if_missing


class Datum:
    """An image file with its label, domain (both counted from 0) and class name."""

    # Attributes are named as in Dassl.pytorch: CoOp pickles lists of Datum as few-shot caches, which users have.
    def __init__(self, impath: str = "", label: int = 0, domain: int = 0, classname: str = "") -> None:
        if not isinstance(impath, str):
            raise UserAssertionError(f"The path of an image (impath) must be a str, got {type(impath).__name__}.")
        if not osp.isfile(impath):
            raise UserAssertionError(
                f"Image not found: {impath!r}. Check DATASET.ROOT, and that the dataset is unpacked completely."
            )
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    impath = property(attrgetter("_impath"))
    label = property(attrgetter("_label"))
    domain = property(attrgetter("_domain"))
    classname = property(attrgetter("_classname"))

    def __repr__(self) -> str:
        place = f"impath={self.impath!r}, label={self.label}, domain={self.domain}"
        return f"Datum({place}, classname={self.classname!r})"


Items = Sequence[Datum] | None


class DatasetBase:
    """A data set of splits: lists of Datum or None. ``train_x``, or else ``test``, defines its classes."""

    dataset_dir = ""  # folder below DATASET.ROOT
    domains: list[str] = []  # the index of a name is Datum.domain

    def __init__(self, train_x: Items = None, train_u: Items = None, val: Items = None, test: Items = None) -> None:
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        labelled = train_x or test or []
        self._num_classes = self.get_num_classes(labelled)
        self._lab2cname, self._classnames = self.get_lab2cname(labelled)

    train_x = property(attrgetter("_train_x"))
    train_u = property(attrgetter("_train_u"))
    val = property(attrgetter("_val"))
    test = property(attrgetter("_test"))
    lab2cname = property(attrgetter("_lab2cname"))  # label -> class name
    num_classes = property(attrgetter("_num_classes"))  # the highest label + 1

    @property
    def classnames(self) -> list[str]:
        """Class names in the order of the labels. Raises UserValueError if a label has no image."""
        if len(self._classnames) != self._num_classes:
            missing = sorted(set(range(self._num_classes)) - set(self._lab2cname))
            raise UserValueError(
                f"{type(self).__name__}: the labels go up to {self._num_classes - 1}, but {missing} have no "
                "image in the training data, so class names cannot be matched to labels. Is the download "
                "complete?"
            )
        return self._classnames

    @staticmethod
    def get_num_classes(data_source: Iterable[Datum]) -> int:
        """Return the highest label + 1."""
        return max((item.label for item in data_source), default=-1) + 1

    @staticmethod
    def get_lab2cname(data_source: Iterable[Datum]) -> tuple[dict[int, str], list[str]]:
        lab2cname = dict(sorted({item.label: item.classname for item in data_source}.items()))
        return lab2cname, list(lab2cname.values())

    def check_input_domains(self, source_domains: Iterable[str], target_domains: Iterable[str]) -> None:
        self.is_input_domain_valid(source_domains, "DATASET.SOURCE_DOMAINS")
        self.is_input_domain_valid(target_domains, "DATASET.TARGET_DOMAINS")

    def is_input_domain_valid(
        self, input_domains: Iterable[str], key: str = "DATASET.SOURCE_DOMAINS or TARGET_DOMAINS"
    ) -> None:
        for domain in input_domains:
            check_availability(domain, self.domains, f"domain of {type(self).__name__} ({key})")

    def download_data(self, url: str, dst: str, from_gdrive: bool = True) -> None:
        """Download an archive (zip or tar) to the file ``dst`` and unpack it into the folder of ``dst``."""
        by_hand = f"Download {url} by hand, unpack it in {osp.dirname(dst)} and start again."
        mkdir_if_missing(osp.dirname(dst))
        try:
            if from_gdrive:
                import gdown

                gdown.download(url, dst, quiet=False)
            else:
                from torch.hub import download_url_to_file

                download_url_to_file(url, dst)
        except ImportError:
            message = f"Downloading from Google Drive needs gdown: pip install gdown. Or: {by_hand}"
            raise UserImportError(message) from None
        except Exception as error:  # urllib, requests and gdown have their own errors
            raise UserOSError(f"Could not download {url} ({type(error).__name__}: {error}). {by_hand}") from error
        print(f"Extracting {dst} ...")
        if zipfile.is_zipfile(dst):
            with zipfile.ZipFile(dst) as archive:
                archive.extractall(osp.dirname(dst))
        elif osp.isfile(dst) and tarfile.is_tarfile(dst):
            with tarfile.open(dst) as archive:
                archive.extractall(osp.dirname(dst), filter="data")  # nothing outside the folder
        else:
            raise UserValueError(f"{dst} from {url} is not a zip or tar archive. Delete it. {by_hand}")

    def generate_fewshot_dataset(self, *data_sources: Items, num_shots: int = -1, repeat: bool = False) -> Sequence:
        """Draw ``num_shots`` images per class (less than 1: all) from each data source.

        A class with fewer images gives all of them, or with ``repeat`` some of them repeatedly. The result is a list of
        Datum, or for several data sources a list of such lists.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        print(f"Creating a {num_shots}-shot dataset")
        output = []
        for data_source in data_sources:
            drawn = []
            for items in self.split_dataset_by_label(data_source).values():
                if len(items) >= num_shots:
                    drawn += random.sample(items, num_shots)
                elif repeat:
                    drawn += random.choices(items, k=num_shots)
                else:
                    drawn += items
            output.append(drawn)
        return output[0] if len(output) == 1 else output

    def split_dataset_by_label(self, data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        groups = defaultdict(list)
        for item in data_source:
            groups[item.label].append(item)
        return groups

    def split_dataset_by_domain(self, data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        groups = defaultdict(list)
        for item in data_source:
            groups[item.domain].append(item)
        return groups
