"""Image files of every kind that OpenCV decodes."""

from __future__ import annotations

import re
import struct
import zlib

import cv2
import numpy as np
import pytest

from cv_patchpose.detectors import detect
from cv_patchpose.files import read_image


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_eight_bits_are_read_as_they_are(photograph, tmp_path, suffix, channels):
    if channels == 4 and suffix == "jpg":
        return
    path = tmp_path / f"image.{suffix}"
    image = np.dstack((photograph, photograph[..., 0]))[:, :400, :channels]
    assert cv2.imwrite(str(path), image // 3)  # nothing of it is stretched
    found = read_image(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, cv2.imread(str(path)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_image_is_turned_as_its_camera_was(photograph, tmp_path, dtype):
    """By the EXIF orientation 6: the rows of the file are columns, from the right."""
    path = tmp_path / "image.png"
    upright = photograph[:, :400].astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    encoded = cv2.imencode(".png", np.rot90(upright))[1].tobytes()
    exif = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, 6, 0, 0)
    chunk = _chunk(b"eXIf", exif)
    path.write_bytes(encoded[:33] + chunk + encoded[33:])  # behind the header
    np.testing.assert_allclose(read_image(path), photograph[:, :400], atol=2)


@pytest.mark.parametrize("color", [True, False])
@pytest.mark.parametrize(
    ("suffix", "dtype", "factor", "start"),
    [
        ("png", np.uint16, 16, 0),  # 12 bits, of which the upper 8 hold next to nothing
        ("tif", np.uint16, 2, 60000),
        ("tif", np.float32, 1 / 255, 0),
        ("tif", np.float64, 1e6, -1e8),
    ],
)
def test_other_types_are_stretched(photograph, tmp_path, color, suffix, dtype, factor, start):
    path = tmp_path / f"image.{suffix}"
    image = photograph if color else photograph[..., 1]
    assert (image.min(), image.max()) == (0, 255)
    exact = (cv2.IMWRITE_TIFF_COMPRESSION, 1) if suffix == "tif" else ()  # OpenCV 4 chooses LogLuv
    cv2.imwrite(str(path), (image.astype(float) * factor + start).astype(dtype), exact)
    found = read_image(path)
    assert found.dtype == np.uint8
    expected = image if color else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    np.testing.assert_allclose(found, expected, atol=1)
    assert len(detect(found, "sift", 500)) >= 500


def test_an_image_of_one_value_is_black(tmp_path):
    cv2.imwrite(str(tmp_path / "flat.png"), np.full((9, 9), 700, np.uint16))
    assert not read_image(tmp_path / "flat.png").any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    path = tmp_path / "image.tif"
    image = np.zeros((20, 20), np.float32)
    image[3, 4] = value
    cv2.imwrite(str(path), image)
    message = f"{path}: expected finite values, got NaN or infinity"
    with pytest.raises(ValueError, match=re.escape(message)):
        read_image(path)


def test_an_image_beyond_opencv_s_limits_is_named(tmp_path):
    path = tmp_path / "large.png"
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    content = _chunk(b"IDAT", zlib.compress(b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + content + _chunk(b"IEND", b""))
    with pytest.raises(ValueError, match=re.escape(f"{path}: expected an image file, got one")):
        read_image(path)


@pytest.mark.parametrize(("name", "kind"), [("none.png", "no such file"), ("", "a folder")])
def test_what_is_no_file_is_told_as_such(tmp_path, name, kind):
    path = tmp_path / name
    with pytest.raises(OSError, match=re.escape(f"{path}: expected an image file, got {kind}")):
        read_image(path)


def _chunk(kind: bytes, content: bytes) -> bytes:
    """Write a part of a PNG file."""
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
