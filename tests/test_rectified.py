"""Descriptors of rectified patches: a row for each keypoint, turning and growing with its pose."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cv_patchpose import rectified as module
from cv_patchpose.descriptors import DESCRIPTORS, create_extractor
from cv_patchpose.field_rules import WINDOW
from cv_patchpose.rectified import describe

FIELDS = ("pt", "size", "angle", "response", "octave", "class_id")
BINARY = {cv2.NORM_HAMMING, cv2.NORM_HAMMING2}


def cv2_class(name):
    return getattr(cv2, name, None) or getattr(cv2.xfeatures2d, name)


def fields(keypoint):
    return tuple(getattr(keypoint, name) for name in FIELDS)


def distances(rows, others, extractor):
    """(N, M) distances in the extractor's own norm."""
    norm = extractor.defaultNorm()
    return np.array([[cv2.norm(a[None], b[None], norm) for b in others] for a in rows])


def assert_same_rows(rows, expected, extractor):
    """Compare but for rounding, which depends on the place in the mosaic.

    Where a patch is flat, BRISK compares brightnesses that differ in nothing else.
    """
    if extractor.defaultNorm() in BINARY:
        bits = np.diag(distances(rows, expected, extractor))
        assert np.median(bits) == 0
        assert bits.max() <= 0.04 * 8 * rows.shape[1]
    else:
        np.testing.assert_allclose(rows, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.fixture(scope="module")
def points():
    """Points of all sizes and angles, some on the border, in no order, with foreign fields."""
    rng = np.random.default_rng(5)
    places = rng.uniform(0, 511, (40, 2))
    places[:3] = (-0.5, -0.5), (511.5, 200), (300, 511)
    sizes = np.exp(rng.uniform(np.log(0.5), np.log(800), 40))
    angles = rng.uniform(0, 360, 40)
    octaves = rng.choice([0, 255, 769, 13], 40)
    return [
        cv2.KeyPoint(float(x), float(y), float(s), float(a), float(i), int(o), i - 1)
        for i, ((x, y), s, a, o) in enumerate(zip(places, sizes, angles, octaves, strict=True))
    ]


def transformed(image, zoom, turn_deg):
    """Zoom and turn about the middle; return the image and its (2, 3) matrix."""
    height, width = image.shape[:2]
    center = (width - 1) / 2, (height - 1) / 2
    matrix = cv2.getRotationMatrix2D(center, -turn_deg, zoom)  # OpenCV turns the other way
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_CUBIC), matrix


class TestRows:
    @pytest.mark.parametrize("name", DESCRIPTORS)
    def test_every_keypoint_has_its_row_in_order(self, photograph, points, name):
        found, rows = describe(photograph, points, name)
        extractor = create_extractor(name)
        assert isinstance(found, tuple)
        assert [fields(k) for k in found] == [fields(k) for k in points]
        assert rows.shape == (len(points), rows.shape[1])
        assert rows.dtype == (np.float32 if extractor.descriptorType() == cv2.CV_32F else np.uint8)
        assert np.isfinite(rows).all()
        alone = [describe(photograph, [point], extractor)[1][0] for point in points]
        assert_same_rows(rows, np.array(alone), extractor)

    @pytest.mark.parametrize("name", DESCRIPTORS)
    def test_mosaics_are_bounded_and_make_no_difference(
        self, photograph, points, name, monkeypatch
    ):
        _, expected = describe(photograph, points, name)
        sides = []
        lay_out = module._lay_out
        monkeypatch.setattr(
            module, "_lay_out", lambda *args: sides.append(len(args[0])) or lay_out(*args)
        )
        tile_px = module._view_of(create_extractor(name)).tile_px
        monkeypatch.setattr(module, "_MOSAIC_PX", 7 * tile_px**2)
        _, rows = describe(photograph, points, name)
        assert sides == [7, 7, 7, 7, 7, 5]
        assert_same_rows(rows, expected, create_extractor(name))

    @pytest.mark.parametrize("name", DESCRIPTORS)
    def test_none_in_none_out(self, photograph, name):
        assert describe(photograph, [], name) == ((), None)

    def test_nothing_given_is_changed(self, photograph, points):
        before = [fields(k) for k in points]
        found, _ = describe(photograph, points, "sift")
        found[0].size = 3.0
        assert [fields(k) for k in points] == before

    def test_no_angle_is_upright(self, photograph):
        rows = [
            describe(photograph, [cv2.KeyPoint(250, 200, 9, angle)], "brief")[1]
            for angle in (-1, 0, 360)
        ]
        np.testing.assert_array_equal(rows[1], rows[0])
        np.testing.assert_array_equal(rows[2], rows[0])


class TestPose:
    @pytest.mark.parametrize("name", DESCRIPTORS)
    @pytest.mark.parametrize(("zoom", "turn_deg"), [(1.0, 90.0), (1.0, 35.0), (2.0, 110.0)])
    def test_the_same_patch_turned_and_zoomed_has_the_same_row(
        self, photograph, name, zoom, turn_deg
    ):
        rng = np.random.default_rng(0)
        gray = cv2.GaussianBlur(photograph, (0, 0), 1.5)
        places, sizes = rng.uniform(190, 320, (30, 2)), rng.uniform(5, 9, 30)
        angles = rng.uniform(0, 360, 30)
        image, matrix = transformed(gray, zoom, turn_deg)
        moved = places @ matrix[:, :2].T + matrix[:, 2]
        first = [
            cv2.KeyPoint(*map(float, (*p, s, a)))
            for p, s, a in zip(places, sizes, angles, strict=True)
        ]
        second = [
            cv2.KeyPoint(*map(float, (*p, zoom * s, a + turn_deg)))
            for p, s, a in zip(moved, sizes, angles, strict=True)
        ]
        extractor = create_extractor(name)
        rows, others = describe(gray, first, name)[1], describe(image, second, name)[1]
        apart = distances(rows, others, extractor)
        same, different = np.diag(apart), apart[~np.eye(len(apart), dtype=bool)]
        assert np.median(same) < 0.1 * np.median(different)
        assert (apart.argmin(axis=1) == np.arange(len(apart))).mean() > 0.95

    @pytest.mark.parametrize("name", sorted(set(DESCRIPTORS) - {"brisk"}))
    def test_the_angle_reaches_every_descriptor(self, photograph, name):
        pair = [cv2.KeyPoint(250, 200, 9, 0), cv2.KeyPoint(250, 200, 9, 70)]
        rows = describe(photograph, pair, name)[1]
        assert not np.array_equal(rows[0], rows[1])

    @pytest.mark.parametrize("name", DESCRIPTORS)
    def test_the_size_reaches_every_descriptor(self, photograph, name):
        pair = [cv2.KeyPoint(250, 200, 9, 0), cv2.KeyPoint(250, 200, 18, 0)]
        rows = describe(photograph, pair, name)[1]
        assert not np.array_equal(rows[0], rows[1])

    @pytest.mark.parametrize("name", DESCRIPTORS)
    def test_a_descriptor_sees_nothing_of_its_neighbours(self, name):
        view = module._view_of(create_extractor(name))
        rng = np.random.default_rng(1)
        side, channels = view.tile_px, 3 if view.color else 1
        patches = rng.random((9, channels, side, side)).astype(np.float32)
        patches = cv2.GaussianBlur(patches.reshape(-1, side, side).transpose(1, 2, 0), (0, 0), 1.5)
        patches = patches.transpose(2, 0, 1).reshape(9, channels, side, side)
        others = 1 - patches
        others[4] = patches[4]
        tiles = module._tile_keypoints(9, 3, view)
        rows = []
        for content in (patches, others):
            mosaic = module._lay_out(content, 3, view.border_px)
            written = module.rule_for(view.extractor).write(tiles, mosaic.shape[:2])
            found, described = view.extractor.compute(mosaic, module.keypoints_from_arrays(written))
            rows.append(described[module._tile_indices(found, 3, view).tolist().index(4)])
        assert_same_rows(rows[0][None], rows[1][None], view.extractor)

    @pytest.mark.parametrize("name", ["sift", "orb", "latch"])
    def test_the_window_is_six_times_the_size(self, name):
        """What lies outside of the window and the filters' reach does not count."""
        rng = np.random.default_rng(2)
        image = cv2.GaussianBlur(rng.integers(0, 255, (400, 400), np.uint8), (0, 0), 2)
        view = module._view_of(create_extractor(name))
        half = round(np.ceil(view.reach_px / view.window_px * WINDOW * 20)) + 8
        framed = np.zeros_like(image)
        inner = slice(200 - half, 200 + half + 1)
        framed[inner, inner] = image[inner, inner]
        rows = [describe(i, [cv2.KeyPoint(200, 200, 20, 0)], name)[1] for i in (image, framed)]
        assert_same_rows(rows[0], rows[1], view.extractor)


class TestExtractors:
    @pytest.mark.parametrize("name", DESCRIPTORS)
    def test_a_name_is_its_object(self, photograph, points, name):
        by_name = describe(photograph, points, name)[1]
        by_object = describe(photograph, points, create_extractor(name))[1]
        np.testing.assert_allclose(by_object, by_name, atol=1e-5)

    def test_kaze_and_freak_are_taken_upright_and_left_as_they_were(self, photograph, points):
        kaze, freak = cv2_class("KAZE").create(), cv2_class("FREAK").create()
        upright = cv2_class("KAZE").create(upright=True)
        np.testing.assert_allclose(
            describe(photograph, points, kaze)[1], describe(photograph, points, upright)[1]
        )
        describe(photograph, points, freak)
        assert not kaze.getUpright()
        assert freak.getOrientationNormalized()

    @pytest.mark.parametrize("layers", [1, 2, 4])
    def test_rows_resemble_those_of_kaze_itself(self, photograph, layers):
        upright = cv2_class("KAZE").create(upright=True, nOctaveLayers=layers)
        found, expected = upright.detectAndCompute(photograph, None)
        points = [cv2.KeyPoint(*k.pt, 2 * k.size, 0) for k in found]  # sizes as SIFT's
        rows = describe(photograph, points, upright)[1]
        assert len(rows) > 100
        assert np.median((rows * expected).sum(axis=1)) > 0.97  # of rows of length 1

    def test_akaze_does_not_leave_out_the_weakest(self, photograph, points):
        akaze = cv2_class("AKAZE").create(max_points=3)
        assert len(describe(photograph, points, akaze)[1]) == len(points)

    @pytest.mark.parametrize(
        ("name", "settings"),
        [
            ("SIFT", {"sigma": 3.0, "nOctaveLayers": 5}),
            ("ORB", {"edgeThreshold": 100, "patchSize": 45, "firstLevel": 1, "WTA_K": 3}),
            ("BRISK", {"patternScale": 2.0}),
            ("FREAK", {"patternScale": 40.0, "scaleNormalized": False}),
            ("LATCH", {"half_ssd_size": 9, "rotationInvariance": False}),
            ("LUCID", {"lucid_kernel": 3, "blur_kernel": 5}),
            ("DAISY", {"radius": 30.0}),
            ("VGG", {"scale_factor": 1.0, "isigma": 3.0}),
            ("BoostDesc", {"use_scale_orientation": False}),
            ("KAZE", {"extended": True, "nOctaveLayers": 2}),
            ("KAZE", {"nOctaveLayers": 1}),
            ("AKAZE", {"descriptor_type": 2}),
            ("AKAZE", {"descriptor_type": 5, "descriptor_size": 100, "nOctaveLayers": 2}),
        ],
    )
    def test_settings_other_than_the_default(self, photograph, points, name, settings):
        extractor = cv2_class(name).create(**settings)
        _, rows = describe(photograph, points, extractor)
        assert len(rows) == len(points)
        assert np.isfinite(rows).all()
        width = rows.shape[1]
        assert width == (extractor.descriptorSize() or width)


class TestImages:
    def test_color_reaches_lucid_only(self, photograph, points):
        gray = cv2.cvtColor(photograph, cv2.COLOR_BGR2GRAY)
        for name, same in (("sift", True), ("freak", True), ("lucid", False)):
            rows = [describe(image, points, name)[1] for image in (photograph, gray)]
            assert np.array_equal(rows[0], rows[1]) == same

    def test_channels_reach_lucid_in_the_order_of_opencv(self):
        image = np.zeros((64, 64, 3), np.uint8)
        image[:, :, 2] = 200  # red
        lucid = create_extractor("lucid")
        _, expected = lucid.compute(image, [cv2.KeyPoint(32, 32, 9)])
        np.testing.assert_array_equal(
            describe(image, [cv2.KeyPoint(32, 32, 9)], lucid)[1], expected
        )

    @pytest.mark.parametrize(
        "convert",
        [
            lambda image: image.astype(np.uint16) * 257,
            lambda image: image.astype(np.float32) / 255,
            lambda image: np.asfortranarray(image),
            lambda image: cv2.cvtColor(image, cv2.COLOR_BGR2BGRA),
            cv2.UMat,
        ],
    )
    def test_all_kinds_of_images_give_the_same(self, photograph, points, convert):
        expected = describe(photograph, points, "sift")[1]
        found = describe(convert(photograph.copy()), points, "sift")[1]
        assert np.abs(found - expected).mean() < 0.5

    @pytest.mark.parametrize(
        "convert",
        [
            lambda image: image.astype(np.uint16) * 4,  # 10 bits
            lambda image: image.astype(np.float32),  # 0 to 255
        ],
    )
    def test_other_ranges_are_stretched(self, photograph, points, convert):
        image = cv2.normalize(photograph, None, 0, 255, cv2.NORM_MINMAX)
        expected = describe(image, points, "sift")[1]
        assert np.abs(describe(convert(image), points, "sift")[1] - expected).mean() < 0.5

    @pytest.mark.parametrize("name", DESCRIPTORS)
    def test_flat_images_have_finite_rows(self, name):
        image = np.full((100, 100), 128, np.uint8)
        _, rows = describe(image, [cv2.KeyPoint(50, 50, 9, 30)], name)
        assert np.isfinite(rows).all()
        assert name != "kaze" or not rows.any()

    @pytest.mark.parametrize("value", [0.5, 300, -7])
    def test_floats_of_one_value_are_black(self, value):
        point = [cv2.KeyPoint(50, 50, 9, 30)]
        black, flat = np.zeros((2, 100, 100), np.float32)
        flat[:] = value
        rows = [describe(image, point, "sift")[1] for image in (flat, black)]
        np.testing.assert_array_equal(*rows)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 300), (5, 5)])
    def test_small_images(self, shape):
        image = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
        for name in DESCRIPTORS:
            _, rows = describe(image, [cv2.KeyPoint(0, 0, 5, 30), cv2.KeyPoint(0, 0, 90, 0)], name)
            assert len(rows) == 2
            assert np.isfinite(rows).all()


class TestErrors:
    @pytest.mark.parametrize(
        ("point", "message"),
        [
            (cv2.KeyPoint(5, 5, 0), "finite sizes above 0, got 0.0 at index 1"),
            (cv2.KeyPoint(5, 5, float("nan")), "finite sizes above 0, got nan at index 1"),
            (cv2.KeyPoint(5, 5, float("inf")), "finite sizes above 0, got inf at index 1"),
            (cv2.KeyPoint(5, 5, 9, float("nan")), "finite angles, got nan at index 1"),
            (cv2.KeyPoint(600, 5, 9), r"centres on the 512 x 512 image, got \(600.0, 5.0\) at"),
        ],
    )
    def test_senseless_keypoints_are_refused(self, photograph, point, message):
        with pytest.raises(ValueError, match=f"keypoints: expected {message}"):
            describe(photograph, [cv2.KeyPoint(5, 5, 9), point], "kaze")

    def test_values_that_cannot_be_stretched_are_refused(self):
        image = np.zeros((50, 50), np.float32)
        image[3, 4] = np.inf
        with pytest.raises(ValueError, match="image: expected finite values"):
            describe(image, [], "sift")

    def test_what_is_no_keypoint_is_refused(self, photograph):
        with pytest.raises(TypeError, match=r"keypoints: expected a list or tuple"):
            describe(photograph, [(3, 4)], "sift")

    def test_images_of_two_channels_are_refused(self):
        with pytest.raises(ValueError, match="image: expected"):
            describe(np.zeros((50, 50, 2), np.uint8), [], "sift")

    @pytest.mark.parametrize("wrong", ["surf", object()])
    def test_unknown_extractors_are_refused(self, photograph, wrong):
        with pytest.raises(ValueError, match="extractor: expected one of sift, "):
            describe(photograph, [], wrong)

    def test_variants_are_named_as_what_they_are(self, photograph):
        message = r"expected one of sift, .* got 'sift-fine', which is for assign\(.* of cv2.SIFT"
        with pytest.raises(ValueError, match=f"extractor: {message}"):
            describe(photograph, [cv2.KeyPoint(5, 5, 9)], "sift-fine")

    def test_the_number_of_threads_is_checked(self, photograph):
        with pytest.raises(ValueError, match="num_threads: expected a whole number"):
            describe(photograph, [cv2.KeyPoint(5, 5, 9)], "sift", num_threads=0)
