"""One labelled image, and what all datasets share."""

import os.path as osp
import random
import tarfile
import zipfile
from collections import defaultdict

from dassl.utils.errors import UserAssertionError, UserImportError, UserOSError, UserValueError
from dassl.utils.registry import check_availability
from dassl.utils.tools import check_isfile, mkdir_if_missing  # noqa: F401 (clients take check_isfile from here)


class Datum:
    """One image.

    Args:
        impath (str): its file.
        label (int): its class.
        domain (int): its domain.
        classname (str): the name of its class.

    Raises:
        UserAssertionError: there is no such file.
    """

    # The attributes are called as in Dassl.pytorch (and not slots): CoOp pickles lists of Datum as few-shot
    # caches, and those that users already have shall load.
    def __init__(self, impath="", label=0, domain=0, classname=""):
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

    @property
    def impath(self):
        """Path of the image file."""
        return self._impath

    @property
    def label(self):
        """Class, counted from 0."""
        return self._label

    @property
    def domain(self):
        """Domain, counted from 0."""
        return self._domain

    @property
    def classname(self):
        """Name of the class."""
        return self._classname

    def __repr__(self):
        place = f"impath={self.impath!r}, label={self.label}, domain={self.domain}"
        return f"Datum({place}, classname={self.classname!r})"


class DatasetBase:
    """A dataset in splits, each a list of :class:`Datum` or None.

    Classes are those of ``train_x``; without it (evaluation only), those of ``test``.

    Args:
        train_x: labelled training data.
        train_u: unlabelled training data.
        val: validation data.
        test: test data.
    """

    dataset_dir = ""  # name of the dataset's folder below DATASET.ROOT
    domains = []  # names of all domains; a domain's index here is Datum.domain

    def __init__(self, train_x=None, train_u=None, val=None, test=None):
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        labelled = train_x or test or []
        self._num_classes = self.get_num_classes(labelled)
        self._lab2cname, self._classnames = self.get_lab2cname(labelled)

    @property
    def train_x(self):
        """Labelled training data."""
        return self._train_x

    @property
    def train_u(self):
        """Unlabelled training data."""
        return self._train_u

    @property
    def val(self):
        """Validation data."""
        return self._val

    @property
    def test(self):
        """Test data."""
        return self._test

    @property
    def lab2cname(self):
        """Dict from labels to class names."""
        return self._lab2cname

    @property
    def classnames(self):
        """List of class names, in the order of the labels.

        Raises:
            UserValueError: a label below ``num_classes`` has no image, so names and labels would not match.
        """
        if len(self._classnames) != self._num_classes:
            missing = sorted(set(range(self._num_classes)) - set(self._lab2cname))
            raise UserValueError(
                f"{type(self).__name__}: the labels go up to {self._num_classes - 1}, but {missing} have no "
                "image in the training data, so class names cannot be matched to labels. Is the download "
                "complete?"
            )
        return self._classnames

    @property
    def num_classes(self):
        """The highest label + 1."""
        return self._num_classes

    @staticmethod
    def get_num_classes(data_source):
        """Return the highest label in ``data_source`` + 1; 0 if it is empty."""
        return max((item.label for item in data_source), default=-1) + 1

    @staticmethod
    def get_lab2cname(data_source):
        """Return a dict from the labels in ``data_source`` to class names, and the list of names by label."""
        lab2cname = dict(sorted({item.label: item.classname for item in data_source}.items()))
        return lab2cname, list(lab2cname.values())

    def check_input_domains(self, source_domains, target_domains):
        """Check DATASET.SOURCE_DOMAINS and DATASET.TARGET_DOMAINS.

        Raises:
            UserValueError: one of them is not a domain of this dataset.
        """
        self.is_input_domain_valid(source_domains, "DATASET.SOURCE_DOMAINS")
        self.is_input_domain_valid(target_domains, "DATASET.TARGET_DOMAINS")

    def is_input_domain_valid(self, input_domains, key="DATASET.SOURCE_DOMAINS or TARGET_DOMAINS"):
        """Raise a :class:`UserValueError` unless each of ``input_domains`` is one of ``self.domains``."""
        for domain in input_domains:
            check_availability(domain, self.domains, f"domain of {type(self).__name__} ({key})")

    def download_data(self, url, dst, from_gdrive=True):
        """Download an archive and unpack it into its folder.

        Args:
            url (str): where it is.
            dst (str): the file to write; zip, tar and compressed tar are unpacked.
            from_gdrive (bool): ``url`` is a link to Google Drive, for which the package gdown is needed.

        Raises:
            UserImportError: gdown is not installed.
            UserOSError: the download failed.
            UserValueError: what came is not an archive.
        """
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
                # "data": nothing outside the folder, no devices, no links that lead out.
                archive.extractall(osp.dirname(dst), filter="data")
        else:
            raise UserValueError(f"What came from {url} is not a zip or tar archive: {dst}. Delete it. {by_hand}")

    def generate_fewshot_dataset(self, *data_sources, num_shots=-1, repeat=False):
        """Draw ``num_shots`` images of each class at random (with python's ``random``).

        Args:
            *data_sources: lists of Datum, each drawn from on its own.
            num_shots (int): images per class; less than 1: all.
            repeat (bool): a class with fewer images gives some of them repeatedly, so that classes are
                balanced; otherwise it gives those it has.

        Returns:
            a list of Datum for one data source, a list of such lists for several.
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

    def split_dataset_by_label(self, data_source):
        """Return a dict from labels to lists of Datum."""
        groups = defaultdict(list)
        for item in data_source:
            groups[item.label].append(item)
        return groups

    def split_dataset_by_domain(self, data_source):
        """Return a dict from domains to lists of Datum."""
        groups = defaultdict(list)
        for item in data_source:
            groups[item.domain].append(item)
        return groups
