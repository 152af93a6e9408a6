"""The fonts that pictures and thumbnails are lettered with: those that matplotlib ships, the same everywhere."""

import functools
from pathlib import Path

from PIL import ImageFont


@functools.lru_cache(maxsize=512)
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of matplotlib's TrueType fonts, for example ``"DejaVuSans-Bold"``, in a size in pixels.

    Raises:
        OSError: matplotlib has no such font.
    """
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    # The basic layout engine, since the other one is not in every Pillow.
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
