"""A list of :class:`~dassl.data.datasets.Datum` as a torch dataset."""

from torch.utils.data import Dataset

from dassl.data.transforms import build_plain_transform
from dassl.utils.errors import UserValueError
from dassl.utils.tools import read_image


class DatasetWrapper(Dataset):
    """Reads and transforms one image at a time.

    Each item is a dict: ``img`` (C, H, W), ``label``, ``domain``, ``impath``, ``index``. With several
    transforms their images are ``img``, ``img2``, ``img3`` ...; with DATALOADER.K_TRANSFORMS > 1 (training
    only) each of them is a list of that many views; with DATALOADER.RETURN_IMG0 ``img0`` is the image without
    augmentation.

    Args:
        cfg: the configuration.
        data_source: list of Datum.
        transform: a transform, or a list or tuple of them; None: ``img`` is the PIL image.
        is_train (bool): whether K_TRANSFORMS applies.

    Raises:
        UserValueError: K_TRANSFORMS > 1 without a transform.
        UserFileNotFoundError, UserOSError: on access, an image that is missing or unreadable.
    """

    def __init__(self, cfg, data_source, transform=None, is_train=False):
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        if self.k_tfm > 1 and transform is None:
            raise UserValueError(
                f"DATALOADER.K_TRANSFORMS is {self.k_tfm}, but there is no transform to apply that often: "
                "set it to 1, or INPUT.NO_TRANSFORM to False."
            )
        self.to_tensor = build_plain_transform(cfg)

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, idx):
        item = self.data_source[idx]
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": idx}
        img0 = read_image(item.impath)
        if self.transform is None:
            output["img"] = img0
        elif isinstance(self.transform, (list, tuple)):
            for i, tfm in enumerate(self.transform, start=1):
                output["img" if i == 1 else f"img{i}"] = self._transform_image(tfm, img0)
        else:
            output["img"] = self._transform_image(self.transform, img0)
        if self.return_img0:
            output["img0"] = self.to_tensor(img0)
        return output

    def _transform_image(self, tfm, img0):
        """Return the image under ``tfm``; where several views are asked for, a list of them."""
        views = [tfm(img0) for _ in range(self.k_tfm)]
        return views[0] if len(views) == 1 else views
