"""A sheet of small images with a line of text below each."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

_SIDE, _TEXT, _GAP = 112, 16, 4


def draw_contact_sheet(
    rows: Sequence[Sequence[tuple[str | Path, str]]], path: str | Path
) -> Image.Image:
    """Draw rows of images, cut to squares; one that cannot be opened is a grey one.

    Args:
        rows: Of each image its file and its text.
        path: PNG file to write.

    Returns:
        What was written.
    """
    width, height = _SIDE + _GAP, _SIDE + _TEXT + _GAP
    size = max(map(len, rows)) * width + _GAP, len(rows) * height + _GAP
    sheet = Image.new('RGB', size, 'white')
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for y, row in enumerate(rows):
        for x, (file, text) in enumerate(row):
            corner = _GAP + x * width, _GAP + y * height
            sheet.paste(_thumbnail(file), corner)
            while text and draw.textlength(text, font) > _SIDE:
                text = text[1:]  # the end of a name tells more than its folders
            draw.text((corner[0], corner[1] + _SIDE + 1), text, 'black', font)
    sheet.save(path)
    return sheet


def _thumbnail(file: str | Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            image.draft('RGB', (2 * _SIDE, 2 * _SIDE))  # JPEGs are read smaller, which is quicker
            upright = ImageOps.exif_transpose(image).convert('RGB')
            return ImageOps.fit(upright, (_SIDE, _SIDE))
    except OSError:
        return Image.new('RGB', (_SIDE, _SIDE), 'grey')
