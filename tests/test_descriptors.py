"""What the rules write is what the detectors write, and what each descriptor can read."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from skimage import data

from cv_patchpose import descriptors
from cv_patchpose.descriptors import DESCRIPTORS, VARIANTS, SiftRule, create_extractor, rule_for
from cv_patchpose.field_rules import WINDOW
from cv_patchpose.keypoints import arrays_from_keypoints, keypoints_from_arrays

LAYER_AND_OCTAVE = 0xFFFF  # the third byte is a sub-layer offset that nobody reads
DROP_NEAR_BORDER = {"orb", "brisk", "brief", "freak", "latch"}

NAMES = (*DESCRIPTORS, *VARIANTS)


def cv2_class(name):
    return getattr(cv2, name, None) or getattr(cv2.xfeatures2d, name)


@pytest.fixture(scope="session")
def photographs(gray_photographs):
    colored = (data.astronaut(), data.coffee())
    return gray_photographs + [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in colored]


def texture(shape, channels=1):
    noise = np.random.default_rng(0).integers(0, 255, (*shape, channels), np.uint8)
    return np.squeeze(cv2.GaussianBlur(noise, (0, 0), 1.0).reshape(noise.shape))


def image_for(name, shape):
    return texture(shape, 3 if name == "lucid" else 1)


def keypoints(count=1, *, x=30.0, y=40.0, size=9.0, angle=12.0, octave=3, class_id=7):
    return arrays_from_keypoints([cv2.KeyPoint(x, y, size, angle, 0.5, octave, class_id)] * count)


def rewritten(extractor, found, size_factor, image):
    """Write detections anew from their sizes, turned into characteristic sizes."""
    nothing = np.zeros_like(found.octave)
    stripped = replace(found, size_px=found.size_px * size_factor, octave=nothing, class_id=nothing)
    return rule_for(extractor).write(stripped, image.shape[:2])


class TestDetectors:
    @pytest.mark.parametrize(("layers", "sigma"), [(3, 1.6), (5, 1.6), (3, 1.2), (4, 2.0)])
    def test_octaves_and_layers_of_sift(self, photographs, layers, sigma):
        sift = cv2.SIFT.create(nOctaveLayers=layers, sigma=sigma)
        agree = []
        for image in photographs:
            found = arrays_from_keypoints(sift.detect(image, None))
            written = rewritten(sift, found, 1.0, image)
            agree.append((written.octave & LAYER_AND_OCTAVE) == (found.octave & LAYER_AND_OCTAVE))
            np.testing.assert_array_equal(written.size_px, found.size_px)
        agree = np.concatenate(agree)
        assert len(agree) > 2000
        assert agree.mean() >= 0.999

    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"scaleFactor": 1.5},
            {"patchSize": 21},
            {"firstLevel": 2},
            {"nlevels": 12},
            {"scaleFactor": 1.0, "nlevels": 1},
        ],
    )
    def test_levels_of_orb(self, photographs, settings):
        orb = cv2.ORB.create(nfeatures=3000, **settings)
        for image in photographs:
            found = arrays_from_keypoints(orb.detect(image, None))
            written = rewritten(orb, found, 1 / WINDOW, image)
            np.testing.assert_array_equal(written.octave, found.octave)
            np.testing.assert_allclose(written.size_px, found.size_px, rtol=1e-6)

    @pytest.mark.parametrize("settings", [{}, {"nOctaves": 3, "nOctaveLayers": 3}])
    @pytest.mark.parametrize("scale", [1.0, 0.25])
    def test_levels_of_akaze(self, photographs, settings, scale):
        akaze = cv2_class("AKAZE").create(threshold=1e-4, **settings)
        for image in photographs:
            small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            found = arrays_from_keypoints(akaze.detect(small, None))
            written = rewritten(akaze, found, 1 / 0.6, small)
            for field in ("octave", "class_id"):
                np.testing.assert_array_equal(getattr(written, field), getattr(found, field))
            np.testing.assert_allclose(written.size_px, found.size_px, rtol=1e-6)

    def test_levels_of_kaze_within_one(self, photographs):
        kaze = cv2_class("KAZE").create()
        for image in photographs[:2]:
            found = arrays_from_keypoints(kaze.detect(image, None))
            written = rewritten(kaze, found, 2.0, image)
            assert len(found) > 200
            assert np.abs(written.class_id - found.class_id).max() <= 1
            np.testing.assert_array_equal(written.octave, written.class_id // 4)


class TestEveryDescriptor:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("shape", [(240, 320), (64, 64), (9, 300)])
    def test_any_size_place_and_angle_can_be_described(self, name, shape):
        height, width = shape
        places = [(width / 2, height / 2), (-0.5, -0.5), (width - 0.5, height - 0.5), (0, 2.3)]
        sizes = [1e-3, 0.5, 1.7, 3.2, 9, 30, 100, 300, 3000, 1e6, 3e38]
        angles = [-1, 0, 359.99999, -20, 725]
        given = arrays_from_keypoints(
            [cv2.KeyPoint(*p, s, a) for p in places for s in sizes for a in angles]
        )
        extractor = create_extractor(name)
        written = keypoints_from_arrays(rule_for(extractor).write(given, shape))
        found, rows = extractor.compute(image_for(name, shape), written)
        if name not in DROP_NEAR_BORDER:
            assert len(found) == len(given)
        assert len(found) == (0 if rows is None else len(rows))
        assert rows is None or np.isfinite(rows).all()

    @pytest.mark.parametrize("name", NAMES)
    def test_no_row_is_void_inside_the_image(self, name):
        given = arrays_from_keypoints(
            [cv2.KeyPoint(200, 150, s, 30.0) for s in (0.01, 0.5, 1, 4, 15, 60, 400, 1e9)]
        )
        extractor = create_extractor(name)
        written = rule_for(extractor).write(given, (300, 400))
        _, rows = extractor.compute(image_for(name, (300, 400)), keypoints_from_arrays(written))
        assert rows.any(axis=1).all()

    @pytest.mark.parametrize("name", NAMES)
    def test_the_angle_and_the_size_are_read_as_stated(self, name):
        extractor = create_extractor(name)
        rule = rule_for(extractor)

        def row(**pose):
            posed = rule.write(keypoints(x=200, y=150, **pose), (300, 400))
            return extractor.compute(image_for(name, (300, 400)), keypoints_from_arrays(posed))[1]

        base = row(size=8.0, angle=0.0)
        assert np.array_equal(row(size=8.0, angle=70.0), base) == (not rule.keeps_angle)
        assert np.array_equal(row(size=16.0, angle=0.0), base) == (not rule.keeps_scale)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("left_by", NAMES)
    def test_what_another_descriptor_left_does_not_matter(self, name, left_by):
        clean = keypoints(4, octave=0, class_id=-1)
        sized = replace(clean, size_px=np.float32([2, 9, 40, 200]))
        left = rule_for(left_by).write(sized, (300, 400))
        poisoned = replace(clean, octave=left.octave, class_id=left.class_id)
        rule = rule_for(name)
        expected, found = (rule.write(given, (300, 400)) for given in (clean, poisoned))
        np.testing.assert_array_equal(found.octave, expected.octave)
        if not rule.class_id_is_free:
            np.testing.assert_array_equal(found.class_id, expected.class_id)

    @pytest.mark.parametrize("name", NAMES)
    def test_place_response_and_a_free_class_id_stay(self, name):
        given = keypoints()
        rule = rule_for(name)
        written = rule.write(given, (480, 640))
        for field in ("xy_px", "angle_deg", "response", *["class_id"] * rule.class_id_is_free):
            np.testing.assert_array_equal(getattr(written, field), getattr(given, field))
        assert written.size_px.dtype == written.angle_deg.dtype == np.float32
        assert written.octave.dtype == written.class_id.dtype == np.int32

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize(
        ("angle", "expected"), [(-20, 340), (360, 0), (725, 5), (-1e-7, 0), (-360, 0), (-361, 359)]
    )
    def test_angles_come_out_between_0_and_360(self, name, angle, expected):
        written = rule_for(name).write(keypoints(angle=angle), (480, 640))
        assert written.angle_deg[0] == pytest.approx(expected, abs=1e-4)
        assert 0 <= written.angle_deg[0] < 360

    @pytest.mark.parametrize("name", NAMES)
    def test_no_angle_stays_none_but_for_daisy_which_raises(self, name):
        written = rule_for(name).write(keypoints(angle=-1), (480, 640))
        assert written.angle_deg[0] == (0 if name == "daisy" else -1)

    @pytest.mark.parametrize("name", NAMES)
    def test_sizes_are_held_between_half_a_pixel_and_the_image(self, name):
        sizes = np.float32([0.01, 0.5, 640, 1e9])
        least, same, longest, most = (
            rule_for(name).write(replace(keypoints(4), size_px=sizes), (480, 640)).size_px
        )
        assert least == same > 0
        assert longest == most

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("size_px", 0.0, "finite sizes above 0, got 0.0"),
            ("size_px", np.nan, "finite sizes above 0, got nan"),
            ("size_px", np.inf, "finite sizes above 0, got inf"),
            ("angle_deg", np.nan, "finite angles, got nan"),
            ("xy_px", (640.0, 3.0), r"centres on the 640 x 480 image, got \(640.0, 3.0\)"),
            ("xy_px", (3.0, np.nan), r"finite centres, got \(3.0, nan\)"),
        ],
    )
    def test_senseless_keypoints_are_refused(self, name, field, value, message):
        given = keypoints(3)
        getattr(given, field)[1] = value
        with pytest.raises(ValueError, match=f"keypoints: expected {message} at index 1"):
            rule_for(name).write(given, (480, 640))


class TestSizes:
    """The window written is six times the characteristic size, in each descriptor's measure."""

    @pytest.mark.parametrize(
        ("name", "factor"),
        [("sift", 1), ("orb", 6), ("brisk", 6 / 2.55), ("akaze", 0.6), ("kaze", 0.5), ("vgg", 1)],
    )
    def test_by_name(self, name, factor):
        written = rule_for(name).write(keypoints(size=12.0), (480, 640))
        assert written.size_px[0] == pytest.approx(12 * factor)

    @pytest.mark.parametrize("name", ["VGG", "BoostDesc", "BEBLID"])
    def test_scale_factors_are_read(self, name):
        extractor = cv2_class(name).create(scale_factor=1.0)
        written = rule_for(extractor).write(keypoints(size=12.0), (480, 640))
        assert written.size_px[0] == pytest.approx(12 * 6.75)

    @pytest.mark.parametrize(("name", "usual"), [("BRISK", 1.0), ("FREAK", 22.0)])
    def test_pattern_scales_are_read(self, name, usual):
        twice = cv2_class(name).create(patternScale=2 * usual)
        sizes = [
            rule_for(descriptor).write(keypoints(size=12.0), (480, 640)).size_px[0]
            for descriptor in (twice, name.lower())
        ]
        assert sizes[0] == pytest.approx(sizes[1] / 2)

    def test_the_kaze_descriptor_of_akaze_has_a_wider_pattern(self):
        akaze = cv2_class("AKAZE").create(descriptor_type=3)
        assert rule_for(akaze).write(keypoints(size=12.0), (480, 640)).size_px[0] == 6


class TestSettings:
    @pytest.mark.parametrize("name", DESCRIPTORS)
    def test_a_name_stands_for_what_is_created(self, name):
        extractor = create_extractor(name)
        by_name, by_object = rule_for(name), rule_for(extractor)
        assert by_name.name == by_object.name == name
        for flag in ("class_id_is_free", "keeps_angle", "keeps_scale"):
            assert getattr(by_name, flag) == getattr(by_object, flag)
        given = replace(keypoints(5), size_px=np.float32([1, 4, 10, 50, 200]))
        written = [vars(rule.write(given, (480, 640))) for rule in (by_name, by_object)]
        for field, values in written[0].items():
            np.testing.assert_allclose(written[1][field], values, rtol=1e-6)

    def test_orb_of_one_level_describes_all_sizes(self):
        orb = cv2.ORB.create(scaleFactor=1.0, nlevels=1)
        sizes = np.float32([1, 4, 10, 50, 200])
        given = replace(keypoints(5, x=200.0, y=150.0), size_px=sizes)
        written = rule_for(orb).write(given, (300, 400))
        np.testing.assert_array_equal(written.octave, 0)
        _, rows = orb.compute(texture((300, 400)), keypoints_from_arrays(written))
        assert len(rows) == 5

    def test_those_of_sift_are_read(self):
        sift = cv2.SIFT.create(nOctaveLayers=4, sigma=2.0)
        assert rule_for(sift) == SiftRule(layers=4, sigma=2.0)

    @pytest.mark.parametrize(
        ("name", "settings", "keeps_angle", "keeps_scale"),
        [
            ("BriefDescriptorExtractor", {}, False, False),
            ("DAISY", {}, False, False),
            ("LATCH", {"rotationInvariance": False}, False, False),
            ("FREAK", {"scaleNormalized": False}, False, False),
            ("ORB", {"scaleFactor": 1.0, "nlevels": 1}, True, False),
            ("VGG", {"use_scale_orientation": False}, False, False),
            ("BoostDesc", {"use_scale_orientation": False}, False, False),
            ("AKAZE", {"descriptor_type": 4}, False, True),
            ("AKAZE", {"descriptor_type": 2}, False, True),
            ("AKAZE", {"descriptor_type": 3}, True, True),
        ],
    )
    def test_those_that_switch_the_pose_off_are_read(
        self, name, settings, keeps_angle, keeps_scale
    ):
        rule = rule_for(cv2_class(name).create(**settings))
        assert (rule.keeps_angle, rule.keeps_scale) == (keeps_angle, keeps_scale)

    def test_fine_sift_has_the_same_sizes_an_octave_lower(self, photographs):
        image = photographs[0]
        found = arrays_from_keypoints(cv2.SIFT.create().detect(image, None))
        found = found.take(np.flatnonzero(found.size_px > 4))  # below, there is no lower octave
        usual, fine = (rule_for(n).write(found, image.shape[:2]) for n in ("sift", "sift-fine"))
        np.testing.assert_array_equal(fine.size_px, usual.size_px)
        octaves = [(k.octave & 255).astype(np.int8) for k in (usual, fine)]
        assert (octaves[0] - octaves[1] == 1).all()
        np.testing.assert_array_equal(fine.octave >> 8 & 255, usual.octave >> 8 & 255)

    def test_affine_keypoints_are_those_of_sift_in_the_first_view(self):
        image = texture((200, 300))
        sift, given = cv2.SIFT.create(), keypoints(x=150, y=100, size=6.4, angle=30)
        _, expected = sift.compute(
            image, keypoints_from_arrays(rule_for(sift).write(given, image.shape))
        )
        for affine in (cv2.AffineFeature.create(sift, maxTilt=2), create_extractor("affine")):
            written = rule_for(affine).write(given, image.shape)
            assert written.class_id[0] == 0
            _, rows = affine.compute(image, keypoints_from_arrays(written))
            np.testing.assert_array_equal(rows, expected)

    def test_an_affine_backend_that_is_not_sift_is_refused(self):
        affine = cv2.AffineFeature.create(cv2.ORB.create())
        with pytest.raises(ValueError, match=r"SIFT backend, of 128 numbers, got one of 32"):
            rule_for(affine)


class TestErrors:
    @pytest.mark.parametrize(
        ("wrong", "named"),
        [("surf", "'surf'"), ("SIFT", "'SIFT'"), (3, "int"), (cv2.ORB, "type"), (None, "NoneType")],
    )
    def test_others_are_refused_with_the_accepted_ones(self, wrong, named):
        message = f"descriptor: expected one of sift, .*, sift-fine or its cv2 object, got {named}"
        with pytest.raises(ValueError, match=message):
            rule_for(wrong)

    @pytest.mark.parametrize("wrong", ["surf", 3])
    def test_unknown_extractors_are_refused_with_the_accepted_ones(self, wrong):
        with pytest.raises(ValueError, match="name: expected one of sift, orb, .*affine"):
            create_extractor(wrong)

    def test_an_opencv_without_contrib_knows_its_own_only(self, monkeypatch):
        freak = create_extractor("freak")
        for room in (cv2, cv2.xfeatures2d):
            for entry in descriptors._TABLE.values():
                if entry.class_name not in ("SIFT", "ORB", "AffineFeature"):
                    monkeypatch.delattr(room, entry.class_name, raising=False)
        monkeypatch.delattr(cv2, "xfeatures2d")
        assert rule_for(create_extractor("sift")).name == "sift"
        with pytest.raises(ValueError, match="descriptor: expected one of"):
            rule_for(freak)
        with pytest.raises(ImportError, match="without FREAK: pip install opencv-contrib-python"):
            create_extractor("freak")
