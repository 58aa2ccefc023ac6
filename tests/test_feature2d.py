"""PatchPoseFeature2D beside the cv2.Feature2D it stands in for."""

from __future__ import annotations

import copy
import pickle

import cv2
import numpy as np
import pytest

from cv_patchpose import PatchPoseAssigner
from cv_patchpose.detectors import create_detector, detect
from cv_patchpose.feature2d import PatchPoseFeature2D
from cv_patchpose.matching import match_logos, ratio_test
from cv_patchpose.rectified import describe

ON_IMAGE = "orb"  # an extractor that reads a pose, and one that measures its own
ON_PATCHES = "kaze"


def fields(keypoints):
    return [(*k.pt, k.size, k.angle, k.response, k.octave, k.class_id) for k in keypoints]


@pytest.fixture(scope="module")
def assigner(toy_model):
    return PatchPoseAssigner(toy_model)


@pytest.fixture(scope="module")
def gray(gray_photographs):
    return gray_photographs[0][150:350, 100:360].copy()


@pytest.fixture(scope="module")
def sift_pair(assigner):
    """The stand-in and the cv2 object whose return types it has."""
    sift = cv2.SIFT.create(nfeatures=40)
    return PatchPoseFeature2D(sift, sift, assigner), sift


class TestReturnTypes:
    def test_detect(self, sift_pair, gray):
        for feature in sift_pair:
            found = feature.detect(gray)
            assert isinstance(found, tuple)
            assert all(isinstance(k, cv2.KeyPoint) for k in found)
            assert len(found) > 20

    def test_detect_and_compute(self, sift_pair, gray):
        for feature in sift_pair:
            found, rows = feature.detectAndCompute(gray, None)
            assert isinstance(found, tuple)
            assert rows.shape == (len(found), feature.descriptorSize())
            assert rows.dtype == np.float32
            again, _ = feature.detectAndCompute(gray, None, None, False)
            assert fields(again) == fields(found)

    def test_nothing_found(self, sift_pair):
        blank = np.zeros((60, 80), np.uint8)
        for feature in sift_pair:
            assert feature.detect(blank) == ()
            assert feature.compute(blank, []) == ((), None)
            assert feature.detectAndCompute(blank, None) == ((), None)

    def test_no_image(self, sift_pair):
        for feature in sift_pair:
            assert feature.detect(None) == ()
            assert feature.detect(np.zeros((0, 0), np.uint8)) == ()
        assert sift_pair[0].detectAndCompute(None, None) == ((), None)

    def test_several_images(self, sift_pair, gray):
        masks = [np.full(gray.shape, 255, np.uint8), np.zeros(gray.shape, np.uint8)]
        for feature in sift_pair:
            for found in (feature.detect([gray, gray]), feature.detect([gray, gray], masks)):
                assert isinstance(found, tuple)
                assert [type(each) for each in found] == [tuple, tuple]
            assert found[1] == ()
            found, rows = feature.compute([gray, gray], [found[0], found[0][:3]])
            assert [type(each) for each in (found, found[0], rows)] == [tuple] * 3
            assert [len(each) for each in rows] == [len(each) for each in found]
            assert feature.detect([]) == ()

    def test_umat_in_umat_out(self, sift_pair, gray):
        mask = cv2.UMat(np.full(gray.shape, 255, np.uint8))
        for feature in sift_pair:
            found, rows = feature.detectAndCompute(cv2.UMat(gray), mask)
            expected = feature.detectAndCompute(gray, None)
            assert fields(found) == fields(expected[0])
            np.testing.assert_array_equal(rows.get(), expected[1])
            found, rows = feature.compute(cv2.UMat(gray), [])
            assert found == ()
            assert isinstance(rows, cv2.UMat)

    @pytest.mark.parametrize("name", ["sift", "orb", "brisk"])
    def test_descriptor_questions(self, assigner, name):
        feature = PatchPoseFeature2D("fast", name, assigner)
        expected = {
            "sift": (128, cv2.CV_32F, cv2.NORM_L2),
            "orb": (32, cv2.CV_8U, cv2.NORM_HAMMING),
            "brisk": (64, cv2.CV_8U, cv2.NORM_HAMMING),
        }
        found = (feature.descriptorSize(), feature.descriptorType(), feature.defaultNorm())
        assert found == expected[name]
        assert feature.getDefaultName() == "Feature2D.PatchPose"
        assert not feature.empty()


class TestPoses:
    @pytest.mark.parametrize("extractor", [ON_IMAGE, "sift", "akaze"])
    def test_readers_of_poses_run_on_the_image(self, assigner, photograph, extractor):
        feature = PatchPoseFeature2D("sift", extractor, assigner)
        found = feature.detect(photograph)
        detected = cv2.SIFT.create().detect(photograph, None)
        expected = assigner.assign(photograph, detected, descriptor=extractor)
        assert fields(found) == fields(expected)
        described, rows = feature.compute(photograph, found)
        assert 0 < len(described) == len(rows) <= len(found)

    @pytest.mark.parametrize("extractor", [ON_PATCHES, "brisk"])
    def test_others_run_on_patches(self, assigner, gray, extractor):
        feature = PatchPoseFeature2D("sift", extractor, assigner)
        found, rows = feature.detectAndCompute(gray, None)
        detected = cv2.SIFT.create().detect(gray, None)
        posed = assigner.assign(gray, detected, descriptor="sift")
        expected, expected_rows = describe(gray, posed, extractor)
        assert fields(found) == fields(expected) == fields(posed)
        np.testing.assert_array_equal(rows, expected_rows)

    def test_keypoints_and_rows_stay_in_step(self, assigner, gray):
        orb = cv2.ORB.create()  # leaves out what is near the border, and changes the order
        feature = PatchPoseFeature2D("sift", orb, assigner)
        given = feature.detect(gray)
        found, rows = feature.compute(gray, given)
        index = [k.class_id for k in found]
        assert len(index) < len(given)
        assert index != sorted(index)
        assert {k.class_id: k.pt for k in given}.items() >= {
            k.class_id: k.pt for k in found
        }.items()
        for keypoint, row in zip(found, rows, strict=True):
            np.testing.assert_array_equal(orb.compute(gray, [keypoint])[1][0], row)

    def test_masks_go_to_the_detector(self, assigner, gray):
        mask = np.zeros(gray.shape, np.uint8)
        mask[:, 130:] = 1
        for given in (mask, mask[:, :, None]):
            found = PatchPoseFeature2D("fast", "sift", assigner).detect(gray, given)
            assert len(found) > 10
            assert min(k.pt[0] for k in found) >= 129

    def test_any_object_can_detect(self, assigner, gray):
        class Center:
            def detect(self, image, mask):
                assert image.dtype == np.uint8
                assert mask is None
                return [cv2.KeyPoint(130.0, 100.0, 7.0)]

        (found,) = PatchPoseFeature2D(Center(), "sift", assigner).detect(gray)
        assert found.pt == (130.0, 100.0)
        assert found.angle >= 0

    def test_points_beyond_the_border_are_left_out(self, assigner, gray):
        class Corners:
            def detect(self, image, mask):
                right, bottom = image.shape[1] - 1, image.shape[0] - 1
                places = [(-0.5, 0), (-0.6, 0), (0, -2), (right + 1, 9), (right, bottom + 0.5)]
                return [cv2.KeyPoint(*map(float, place), 7.0) for place in places]

        found = PatchPoseFeature2D(Corners(), "sift", assigner).detect(gray)
        assert [k.pt for k in found] == [(-0.5, 0), (259, 199.5)]

    def test_affine_feature_detects(self, assigner, photograph):
        image = cv2.resize(photograph, (320, 240))
        affine = cv2.AffineFeature.create(cv2.SIFT.create(100))
        x, y = np.transpose([k.pt for k in affine.detect(image)])
        beyond = (x < -0.5) | (x > 319.5) | (y < -0.5) | (y > 239.5)
        assert beyond.any()
        found, rows = PatchPoseFeature2D(affine, "sift", assigner).detectAndCompute(image, None)
        assert len(rows) == len(found) > 100

    def test_poses_of_the_default_model(self, gray):
        found = PatchPoseFeature2D.create("fast", "sift").detect(gray)
        assert {k.angle >= 0 for k in found} == {True}
        assert len({k.size for k in found}) > 10


class TestImages:
    @pytest.mark.parametrize("extractor", [ON_IMAGE, ON_PATCHES])
    def test_every_kind_gives_the_same(self, assigner, gray, extractor):
        feature = PatchPoseFeature2D("sift", extractor, assigner)
        expected, expected_rows = feature.detectAndCompute(gray, None)
        kinds = {
            "one channel": gray[:, :, None],
            "strided": np.repeat(gray, 2, axis=1)[:, ::2],
            "column order": np.asfortranarray(gray),
            "uint16": gray.astype(np.uint16) * 257,
            "float32": gray.astype(np.float32) / 255,
            "BGR": cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR),
            "BGRA": cv2.cvtColor(gray, cv2.COLOR_GRAY2BGRA),
        }
        for kind, image in kinds.items():
            before = image.copy()
            found, rows = feature.detectAndCompute(image, None)
            assert [k.pt for k in found] == [k.pt for k in expected], kind
            np.testing.assert_allclose(
                np.array(fields(found))[:, 2], np.array(fields(expected))[:, 2], rtol=1e-3
            )
            assert np.isclose(rows, expected_rows, atol=0.02).mean() > 0.9, kind
            np.testing.assert_array_equal(image, before)

    @pytest.mark.parametrize("convert", [lambda i: i.astype(np.uint16) * 4, np.float32])
    def test_other_ranges_are_stretched(self, assigner, gray, convert):
        feature = PatchPoseFeature2D("sift", "sift", assigner)
        image = cv2.normalize(gray, None, 0, 255, cv2.NORM_MINMAX)
        found, expected = feature.detect(convert(image)), feature.detect(image)
        assert [k.pt for k in found] == [k.pt for k in expected] != []

    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
    def test_frames_of_one_value_have_no_keypoints(self, assigner, dtype):
        feature = PatchPoseFeature2D("fast", ON_PATCHES, assigner)
        frame = np.full((60, 80), 200, dtype)
        assert feature.detectAndCompute(frame, None) == ((), None)
        assert len(feature.compute(frame, [cv2.KeyPoint(30, 30, 9)])[1]) == 1

    @pytest.mark.parametrize("detector", ["fast", "harrislaplace", "mser"])
    def test_detectors_are_given_the_channels_they_read(self, assigner, photograph, detector):
        feature = PatchPoseFeature2D(detector, "sift", assigner)
        bgra = np.dstack([photograph, photograph[..., 0]])
        expected = {k.pt for k in detect(photograph, detector, 1_000_000)}
        for image in (photograph, bgra):
            found = {k.pt for k in feature.detect(image)}
            assert len(found & expected) >= 0.95 * len(found | expected) > 0

    def test_other_detectors_are_given_the_colours(self, assigner, photograph):
        class Center:
            def detect(self, image, mask):
                assert image.shape == photograph.shape
                return [cv2.KeyPoint(130.0, 100.0, 7.0)]

        assert len(PatchPoseFeature2D(Center(), "sift", assigner).detect(photograph)) == 1

    def test_bool(self, assigner):
        disc = cv2.circle(np.zeros((120, 120), np.uint8), (60, 60), 15, 1, -1)
        feature = PatchPoseFeature2D("sift", "sift", assigner)
        assert fields(feature.detect(disc.astype(bool))) == fields(feature.detect(disc * 255)) != []

    @pytest.mark.parametrize(
        ("image", "error", "message"),
        [
            (np.zeros((9, 9, 2), np.uint8), ValueError, r"image: expected \(H, W\) or \(H, W, 1"),
            (np.zeros((9, 9)), ValueError, "image: expected bool, uint8, uint16 or float32, got f"),
            (np.full((9, 9), np.nan, np.float32), ValueError, r"values in \[0, 1\], got nan"),
            ("photo.jpg", TypeError, "image: expected an array or cv2.UMat, got str"),
        ],
    )
    def test_bad_images_are_named(self, sift_pair, image, error, message):
        feature, _ = sift_pair
        with pytest.raises(error, match=message):
            feature.detect(image)
        with pytest.raises(error, match=message):
            feature.compute(image, [cv2.KeyPoint(4, 4, 3)])

    @pytest.mark.parametrize("shape", [(1, 100), (2, 2), (7, 100), (100, 3), (20, 20)])
    @pytest.mark.parametrize("detector", ["star", "msd", "tbmr", "sift", "object"])
    def test_images_too_small_for_a_detector_have_no_points(self, assigner, detector, shape):
        """Some detectors crash on them."""
        given = create_detector("msd", 1) if detector == "object" else detector
        feature = PatchPoseFeature2D(given, "sift", assigner)
        assert feature.detect(np.zeros(shape, np.uint8)) == ()
        assert feature.detectAndCompute(np.zeros(shape, np.uint8), None) == ((), None)


class TestErrors:
    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (np.ones((200, 260), bool), r"mask: expected \(200, 260\) uint8 .* got .* bool"),
            (np.ones((260, 200), np.uint8), r"mask: expected \(200, 260\) .* got \(260, 200\)"),
            (np.ones((200, 260, 3), np.uint8), r"mask: expected .* got \(200, 260, 3\)"),
            ("all", "mask: expected an array, cv2.UMat or None, got str"),
        ],
    )
    def test_masks(self, sift_pair, gray, mask, message):
        for call in (sift_pair[0].detect, sift_pair[0].detectAndCompute):
            with pytest.raises(ValueError, match=message):
                call(gray, mask)

    def test_counts_of_several_images(self, sift_pair, gray):
        feature, _ = sift_pair
        with pytest.raises(ValueError, match="mask: expected one per image, 2, got 1"):
            feature.detect([gray, gray], [None])
        with pytest.raises(ValueError, match="mask: expected one per image, 2, got ndarray"):
            feature.detect([gray, gray], gray)
        with pytest.raises(ValueError, match="keypoints: expected one list per image, 2, got 0"):
            feature.compute([gray, gray], [])

    def test_keypoints(self, sift_pair, gray):
        for given in (iter(()), [(1.0, 2.0)], None):
            with pytest.raises(TypeError, match="keypoints: expected a list or tuple of cv2.KeyP"):
                sift_pair[0].compute(gray, given)

    @pytest.mark.parametrize("extractor", ["sift", "brief"])  # on the image, on patches
    @pytest.mark.parametrize(
        ("keypoint", "message"),
        [
            ((np.nan, 9.0, 5.0), "keypoints: expected finite centres"),
            ((9.0, 9.0, 0.0), "keypoints: expected finite sizes above 0"),
            ((9.0, 300.0, 5.0), "keypoints: expected centres on the 260 x 200 image"),
        ],
    )
    def test_senseless_keypoints(self, assigner, gray, extractor, keypoint, message):
        feature = PatchPoseFeature2D("fast", extractor, assigner)
        with pytest.raises(ValueError, match=message):
            feature.compute(gray, [cv2.KeyPoint(9, 9, 5), cv2.KeyPoint(*keypoint)])

    def test_keypoints_cannot_be_provided_twice(self, sift_pair, gray):
        with pytest.raises(ValueError, match="useProvidedKeypoints: expected False"):
            sift_pair[0].detectAndCompute(gray, None, None, True)

    def test_unknown_names_and_objects(self, assigner):
        with pytest.raises(ValueError, match="detector: expected one of sift, orb, .* got 'surf'"):
            PatchPoseFeature2D("surf", "sift", assigner)
        with pytest.raises(ValueError, match="extractor: expected one of sift, .* got 'surf'"):
            PatchPoseFeature2D("sift", "surf", assigner)
        with pytest.raises(ValueError, match="extractor: expected one of sift, .* got object"):
            PatchPoseFeature2D("sift", object(), assigner)
        with pytest.raises(TypeError, match=r"detector: expected a name or an object with detect"):
            PatchPoseFeature2D(7, "sift", assigner)
        for wrong in ("polar", PatchPoseAssigner):
            with pytest.raises(TypeError, match="assigner: expected a PatchPoseAssigner or No"):
                PatchPoseFeature2D("sift", "sift", wrong)

    def test_cpp_refuses_it_without_crashing(self, sift_pair):
        with pytest.raises((TypeError, cv2.error)):
            cv2.AffineFeature.create(sift_pair[0])


class TestCopies:
    @pytest.mark.parametrize(
        "copied", [copy.copy, copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))]
    )
    def test_named_ones_can_be_copied(self, assigner, gray, copied):
        feature = PatchPoseFeature2D("fast", ON_PATCHES, assigner)
        expected, rows = feature.detectAndCompute(gray, None)
        found, found_rows = copied(feature).detectAndCompute(gray, None)
        assert fields(found) == fields(expected)
        np.testing.assert_array_equal(found_rows, rows)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ((cv2.SIFT.create(), "sift"), "detector: expected a name, got a SIFT object"),
            (("sift", cv2.ORB.create()), "extractor: expected a name, got a ORB object"),
        ],
    )
    def test_opencv_objects_cannot(self, assigner, given, message):
        feature = PatchPoseFeature2D(*given, assigner)
        for copied in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match=message):
                copied(feature)


TURN_DEG, ZOOM = 60.0, 0.75


@pytest.fixture(scope="module")
def turned_pair(photograph):
    """A photograph, it turned and zoomed about its centre, and the homography between the two."""
    height, width = photograph.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -TURN_DEG, ZOOM)
    smooth = cv2.GaussianBlur(photograph, (0, 0), 0.5)
    return photograph, cv2.warpAffine(smooth, turn, (width, height)), np.vstack([turn, [0, 0, 1]])


def points(keypoints, index):
    return np.array([keypoints[i].pt for i in index], np.float64).reshape(-1, 1, 2)


@pytest.mark.parametrize("extractor", ["sift", "orb", "brisk"])
def test_an_ordinary_pipeline(turned_pair, extractor):
    first, second, homography = turned_pair
    feature = PatchPoseFeature2D(cv2.SIFT.create(nfeatures=600), extractor)
    keypoints1, rows1 = feature.detectAndCompute(first, None)
    keypoints2, rows2 = feature.detectAndCompute(second, None)
    matches = cv2.BFMatcher(feature.defaultNorm(), crossCheck=True).match(rows1, rows2)
    source = points(keypoints1, [m.queryIdx for m in matches])
    target = points(keypoints2, [m.trainIdx for m in matches])
    miss_px = np.linalg.norm(cv2.perspectiveTransform(source, homography) - target, axis=2)
    assert np.sum(miss_px < 3) >= 60
    found, _ = cv2.findHomography(source, target, cv2.RANSAC, 3.0)
    corners = np.array([[[100.0, 100]], [[400, 100]], [[400, 400]], [[100, 400]]])
    expected = cv2.perspectiveTransform(corners, homography)
    assert np.abs(cv2.perspectiveTransform(corners, found) - expected).max() < 3


def test_its_poses_serve_the_pose_aware_matchers(turned_pair):
    first, second, homography = turned_pair
    feature = PatchPoseFeature2D(cv2.SIFT.create(nfeatures=600), "sift")
    keypoints1, rows1 = feature.detectAndCompute(first, None)
    keypoints2, rows2 = feature.detectAndCompute(second, None)
    words2 = [m.trainIdx for m in cv2.BFMatcher().match(rows2, rows1)]
    for matches in (
        ratio_test(rows1, rows2, keypoints2),
        match_logos(keypoints1, keypoints2, range(len(keypoints1)), words2),
    ):
        source = points(keypoints1, [m.queryIdx for m in matches])
        target = points(keypoints2, [m.trainIdx for m in matches])
        miss_px = np.linalg.norm(cv2.perspectiveTransform(source, homography) - target, axis=2)
        assert np.sum(miss_px < 3) >= 40
        assert np.mean(miss_px < 3) > 0.7


def test_a_variant_of_a_descriptor_is_written_as_its_name_says(photograph):
    usual, fine = (PatchPoseFeature2D("sift", name) for name in ("sift", "sift-fine"))
    keypoints = {f: f.detect(photograph, None) for f in (usual, fine)}
    sizes = [np.array([k.size for k in keypoints[f]]) for f in (usual, fine)]
    np.testing.assert_array_equal(*sizes)
    large = np.flatnonzero(sizes[0] > 5)
    octaves = [np.uint8([keypoints[f][i].octave & 255 for i in large]) for f in (usual, fine)]
    octaves = [octave.astype(np.int8) for octave in octaves]
    assert len(large) > 50
    assert (octaves[0] - octaves[1] == 1).all()
