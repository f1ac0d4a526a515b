"""Files of every kind: each channel, each bit, as displayed, or refused."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from mmcv.transforms import LoadImageFromFile
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from mmpatchmix.datasets import LoadAnyImage, LoadMultiCrop
from mmpatchmix.datasets.decode_image import decode_image
from tests.datasets.any_images import as_npy, as_pillow, as_png, as_tiff, make_levels, make_noise

GREY, RGB = make_noise((20, 30)), make_noise((20, 30, 3))
FIVE = make_noise((20, 30, 5), 'uint16', 65536)
CONTIG = dict(photometric='minisblack', planarconfig='contig')
FLOATS = np.random.default_rng(2).normal(0, 100, (20, 30)).astype(np.float32)


def decode(content: bytes):
    return decode_image(content, 'a file')


@pytest.mark.parametrize(
    ('content', 'expected', 'ends'),
    [
        (as_png(GREY), GREY, (0, 255)),
        (as_png(RGB), RGB, (0, 255)),
        (as_png(make_noise((20, 30, 4))), make_noise((20, 30, 4)), (0, 255)),
        (as_png(FIVE[:, :, :3]), FIVE[:, :, :3], (0, 65535)),
        (as_pillow(GREY > 99, 'PNG'), (GREY > 99) * 255, (0, 255)),
        (as_pillow(RGB, 'WEBP', lossless=True), RGB, (0, 255)),
        (as_tiff(RGB), RGB, (0, 255)),
        (as_tiff(FIVE, **CONTIG), FIVE, (0, 65535)),
        (
            as_tiff(FIVE.transpose(2, 0, 1), photometric='minisblack', planarconfig='separate'),
            FIVE,
            (0, 65535),
        ),
        (as_tiff(FIVE.transpose(2, 0, 1), photometric='minisblack'), FIVE, (0, 65535)),  # pages
        (as_tiff(FIVE, **CONTIG, compression='zlib'), FIVE, (0, 65535)),
        (as_tiff(FLOATS), FLOATS, (None, None)),
        (as_tiff(FLOATS.astype(np.int16)), FLOATS.astype(np.int16), (-32768, 32767)),
        (as_tiff(GREY > 99, photometric='minisblack'), GREY > 99, (0, 1)),
        (as_tiff(GREY > 99, photometric='miniswhite'), GREY <= 99, (0, 1)),
        (as_tiff(GREY, photometric='miniswhite'), 255 - GREY, (0, 255)),
        (as_npy(FLOATS), FLOATS, (None, None)),
        (as_npy(FIVE), FIVE, (0, 65535)),
    ],
)
def test_values_are_decoded_exactly(content, expected, ends):
    values, low, high = decode(content)
    expected = expected[:, :, None] if expected.ndim == 2 else expected
    assert values.shape == expected.shape
    assert np.array_equal(values, expected)
    assert (low, high) == ends


def read_in_every_way(content: bytes, folder) -> list[np.ndarray]:
    """(H, W, 3) of the transforms of the training view, the test view, and any images."""
    path = str(folder / 'image')
    Path(path).write_bytes(content)
    whole = dict(img_path=path)
    images = [LoadAnyImage().transform(whole)['img'], LoadImageFromFile()(whole)['img'][:, :, ::-1]]
    crop = LoadMultiCrop(global_size=images[1].shape[:2], global_scale=(1, 1), ratio=(1, 1))
    return [*images, crop(whole)['view_1'].permute(1, 2, 0).numpy()[:, :, ::-1]]


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_every_reader_applies_orientations(kind, orientation, tmp_path):
    content = as_pillow(RGB, kind, orientation, lossless=True)
    theirs = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    for image in read_in_every_way(content, tmp_path):
        assert image.shape == theirs.shape
        # JPEG: two decoders.
        assert np.abs(image - theirs.astype(float)).mean() < (1 if kind == 'JPEG' else 1e-6)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
def test_every_reader_ignores_damaged_exif_and_the_orientation_of_xmp(kind, tmp_path):
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    text = PngInfo()
    text.add_itxt('XML:com.adobe.xmp', xmp)
    options = dict(pnginfo=text) if kind == 'PNG' else dict(xmp=xmp.encode())
    damaged = dict(exif=b'Exif\0\0II*\0garbage' + bytes(20))
    for metadata in options, damaged:
        content = as_pillow(RGB, kind, lossless=True, **metadata)
        theirs = np.asarray(Image.open(io.BytesIO(content)))  # as stored
        for image in read_in_every_way(content, tmp_path):
            assert image.shape == theirs.shape
            assert np.abs(image - theirs.astype(float)).mean() < 1


def test_the_orientation_of_a_png_may_follow_the_pixels(tmp_path):
    content = as_pillow(RGB, 'PNG', 6)
    begin, end = content.index(b'eXIf') - 4, content.index(b'IDAT') - 4
    last = content.index(b'IEND') - 4
    moved = content[:begin] + content[end:last] + content[begin:end] + content[last:]
    assert moved.index(b'eXIf') > moved.index(b'IDAT')
    for image in read_in_every_way(moved, tmp_path):
        assert np.array_equal(image, np.rot90(RGB, -1))


def two_images(first: np.ndarray, second: np.ndarray, options=(), **of_second) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(first, **dict(options))
        writer.write(second, **of_second)
    return file.getvalue()


@pytest.mark.parametrize('subifds', [0, 1])  # 0: as GDAL writes them
def test_overviews_of_a_tiff_are_ignored(subifds):
    overview = dict(CONTIG, subfiletype=1)
    content = two_images(FIVE, FIVE[::2, ::2].copy(), dict(CONTIG, subifds=subifds), **overview)
    assert np.array_equal(decode(content).values, FIVE)


def movie() -> bytes:
    file = io.BytesIO()
    frames = [Image.fromarray(np.roll(RGB, n, 0)) for n in range(3)]
    frames[0].save(file, 'WEBP', save_all=True, append_images=frames[1:])
    return file.getvalue()


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (b'no image', 'not an image'),
        (b'', 'not an image'),
        (as_png(RGB)[:100], 'not an image'),
        (as_tiff(FIVE, **CONTIG)[:-100], 'it ends too early'),
        (as_tiff(FIVE, **CONTIG, compression='zlib')[:-1], 'it ends too early'),
        (as_npy(FIVE)[:-100], 'not an image'),
        (as_npy(np.zeros((2, 3, 4, 5))), r'float64 of shape \(2, 3, 4, 5\)'),
        (as_npy(np.zeros((2, 3), complex)), 'complex128 of shape'),
        (two_images(GREY, GREY[:10]), r'2 images of shapes \(20, 30\), \(10, 30\)'),
        (as_tiff(make_noise((4, 20, 30, 3)), photometric='rgb'), r'\(4, 20, 30, 3\)'),
        (as_tiff(make_noise((4, 3, 20, 30), 'uint16'), imagej=True), r'\(4, 3, 20, 30\)'),
        (movie(), '3 frames'),
        (as_tiff(GREY, photometric='palette', colormap=np.zeros((3, 256), np.uint16)), 'palette'),
        (as_tiff(RGB, photometric='ycbcr'), 'holds ycbcr, not RGB'),
        (as_tiff(RGB, photometric='cielab'), 'holds cielab, not RGB'),
        (as_npy(np.array([[{}, None]], dtype=object)), 'not an image'),  # a pickle
    ],
)
def test_damaged_files_and_several_images_are_refused(content, reason):
    with pytest.raises(OSError, match=f'(?s){reason}.*a file|a file.*{reason}'):
        decode(content)


def test_lzw_is_read_or_the_package_for_it_is_named():
    file = io.BytesIO()
    Image.fromarray(GREY).save(file, 'TIFF', compression='tiff_lzw')
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match=r'TIFF with LZW .*mmpatchmix\[images\].*: a file'):
            decode(file.getvalue())
    else:
        assert np.array_equal(decode(file.getvalue()).values[:, :, 0], GREY)


def as_dicom(values: np.ndarray, **changes) -> bytes:
    pydicom = pytest.importorskip('pydicom', reason='pip install "mmpatchmix[images]"')
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.Rows, dataset.Columns = values.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, 'MONOCHROME2'
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    for name, value in changes.items():
        setattr(dataset, name, value)
    dataset.PixelData = values.tobytes()
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def test_dicom_is_rescaled():
    levels = make_levels(4081)
    ids = dict(SOPClassUID='1.2.840.10008.5.1.4.1.1.2', SOPInstanceUID='1.2.3')
    values, low, high = decode(as_dicom(levels, **ids))
    assert np.array_equal(values[:, :, 0], levels) and (low, high) == (0, 4095)
    values, low, high = decode(as_dicom(levels, RescaleSlope='2', RescaleIntercept='-1024', **ids))
    assert np.array_equal(values[:, :, 0], 2.0 * levels - 1024)
    assert (low, high) == (-1024, 2 * 4095 - 1024)
    values = decode(as_dicom(levels, PhotometricInterpretation='MONOCHROME1', **ids)).values
    assert np.array_equal(values[:, :, 0], 4095 - levels)
    options = dict(PhotometricInterpretation='MONOCHROME1', RescaleIntercept='-1024', **ids)
    values = decode(as_dicom(levels, RescaleSlope='1', **options)).values  # not as displayed
    assert np.array_equal(values[:, :, 0], levels - 1024.0)
    with pytest.raises(OSError, match='not an image'):
        decode(as_dicom(levels, **ids)[:-100])
    from pydicom import Dataset

    for kind in ('Shared', 'PerFrame'):
        group = Dataset()
        group.PixelValueTransformationSequence = [Dataset()]
        enhanced = as_dicom(levels, **{f'{kind}FunctionalGroupsSequence': [group]}, **ids)
        with pytest.raises(OSError, match='by frame'):
            decode(enhanced)
