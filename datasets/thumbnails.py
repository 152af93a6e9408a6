"""A sheet of sample images to look at: domains are rows, classes columns."""

from collections.abc import Sequence
from typing import TypeVar

from PIL import Image, ImageDraw

from datasets.fonts import load_font
from datasets.survey import Survey

EDGE = 96  # pixels of a sample
_GAP, _MARGIN = 4, 16
_MAX_LABEL = 220  # pixels of a domain's name
T = TypeVar("T")

_INK, _FAINT, _BAD, _GROUND = (20, 20, 20), (120, 120, 120), (190, 30, 30), (238, 238, 238)


def draw_sheet(surveys: Sequence[Survey], per_cell: int = 2, max_classes: int = 12) -> Image.Image:
    """Draw samples of some sets, one set under the other.

    The samples are spread evenly over the sorted images of a class, and so are the classes where there are more than
    ``max_classes``: the same sets always give the same sheet.

    Args:
        surveys: at least one.
        per_cell: samples of each class in each domain.
        max_classes: columns.
    """
    blocks = [_draw_set(survey, per_cell, max_classes) for survey in surveys]
    sheet = Image.new("RGB", (max(block.width for block in blocks), sum(block.height for block in blocks)), "white")
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def spread(items: Sequence[T], n: int) -> list[T]:
    """``n`` of the items, evenly spread; all if there are fewer."""
    return [items[(2 * k + 1) * len(items) // (2 * n)] for k in range(n)] if n < len(items) else list(items)


def _draw_set(survey, per_cell, max_classes):
    title, label, small = (load_font("DejaVuSans", size) for size in (20, 14, 11))
    classes = spread(survey.classes, max_classes)
    shown = f"{len(classes)} of {len(survey.classes)}" if len(classes) < len(survey.classes) else f"{len(classes)}"
    heading = f"{survey.name}: {shown} classes, {per_cell} images of each"
    left = _MARGIN + min(_MAX_LABEL, int(max(label.getlength(domain) for domain in survey.domains)) + 12)
    left = max(left, _MARGIN + 90)
    top, cell = 84, per_cell * EDGE + (per_cell - 1) * _GAP
    width = left + len(classes) * (cell + 3 * _GAP) + _MARGIN
    width = max(width, int(title.getlength(heading)) + 2 * _MARGIN)
    block = Image.new("RGB", (width, top + len(survey.domains) * (EDGE + 3 * _GAP) + _MARGIN), "white")
    draw = ImageDraw.Draw(block)
    draw.text((_MARGIN, 14), heading, _INK, title)
    for column, classname in enumerate(classes):
        middle = left + column * (cell + 3 * _GAP) + cell // 2
        draw.text((middle, top - 10), _shorten(classname, label, cell), _INK, label, anchor="ms")
    for row, domain in enumerate(survey.domains):
        y = top + row * (EDGE + 3 * _GAP)
        draw.text((_MARGIN, y + EDGE // 2 - 4), _shorten(domain, label, left - _MARGIN - 8), _INK, label, anchor="ls")
        draw.text((_MARGIN, y + EDGE // 2 + 4), f"{survey.count(domain):,} images", _FAINT, small, anchor="lt")
        for column, classname in enumerate(classes):
            x = left + column * (cell + 3 * _GAP)
            paths = spread(survey.images.get(domain, {}).get(classname, []), per_cell)
            if not paths:
                draw.rectangle((x, y, x + cell - 1, y + EDGE - 1), _GROUND)
                draw.text((x + cell // 2, y + EDGE // 2), "no images", _FAINT, small, anchor="mm")
            for number, path in enumerate(paths):
                _draw_sample(block, x + number * (EDGE + _GAP), y, survey.location.images_dir / path, small)
    return block


def _draw_sample(block, x, y, path, font):
    from dassl.utils.tools import read_image  # as in training

    draw = ImageDraw.Draw(block)
    draw.rectangle((x, y, x + EDGE - 1, y + EDGE - 1), _GROUND)
    try:
        image = read_image(str(path))
    except Exception:  # what is wrong with it is told elsewhere; the original Dassl lets any of PIL's errors out
        draw.rectangle((x, y, x + EDGE - 1, y + EDGE - 1), outline=_BAD, width=2)
        draw.text((x + EDGE // 2, y + EDGE // 2), "unreadable", _BAD, font, anchor="mm")
        return
    scale = EDGE / max(image.size)
    image = image.resize([max(1, round(edge * scale)) for edge in image.size], reducing_gap=2.0)
    block.paste(image, (x + (EDGE - image.width) // 2, y + (EDGE - image.height) // 2))


def _shorten(text, font, width):
    """``text`` cut to ``width`` pixels, with an ellipsis where it was cut."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
