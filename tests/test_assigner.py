"""The assigner with a model whose answer is known: it points at bright sectors and disc edges."""

from __future__ import annotations

import pickle
import warnings

import cv2
import numpy as np
import pytest
from skimage import data

from cv_patchpose import ModelError, PatchPoseAssigner, PatchPoses, PoseHistograms
from cv_patchpose.descriptors import DESCRIPTORS
from cv_patchpose.detectors import create_detector
from cv_patchpose.histograms import find_modes

SIDE = 241
CENTER = (SIDE - 1) / 2
SIZE = 10.0
POINT_SIZE = 12 * SIZE / 6  # of points at scale 1: the window is what SIFT describes
EDGE_PX = 12 * SIZE / 2 * 2 ** ((24 - 39) / 6)  # radius of the ring on which scale is 1


def disc(angle_deg=0.0, zoom=1.0, second_deg=None):
    """Draw a grey disc, brighter in a direction (and less so in a second one)."""
    y, x = np.mgrid[:SIDE, :SIDE] - CENTER
    direction = np.degrees(np.arctan2(y, x))

    def sector(center_deg):
        return np.exp(-0.5 * (((direction - center_deg + 180) % 360 - 180) / 25) ** 2)

    brightness = 0.5 + 0.5 * sector(angle_deg)
    if second_deg is not None:
        brightness += 0.47 * sector(second_deg)
    inside = np.clip(EDGE_PX * zoom - np.hypot(x, y) + 0.5, 0, 1)
    return (255 * inside * brightness).clip(0, 255).astype(np.uint8)


def point(size=SIZE, angle=-1.0, octave=0, response=0.0, class_id=-1, x=CENTER, y=CENTER):
    return cv2.KeyPoint(x, y, size, angle, response, octave, class_id)


def fields(keypoint):
    k = keypoint
    return (*k.pt, k.size, k.angle, k.response, k.octave, k.class_id)


def turn_between(a_deg, b_deg):
    return abs((a_deg - b_deg + 180) % 360 - 180)


@pytest.fixture(scope="module")
def assigner(toy_model):
    return PatchPoseAssigner(toy_model)


class TestPose:
    @pytest.mark.parametrize("angle_deg", range(0, 360, 15))
    def test_turning_the_image_clockwise_adds_to_the_angle(self, assigner, angle_deg):
        (posed,) = assigner.assign(disc(angle_deg), [point()])
        assert turn_between(posed.angle, angle_deg) < 4  # the toy's softmax is not quite round
        assert 0 <= posed.angle < 360

    def test_turning_by_right_angles_is_exact(self, assigner):
        image = disc(37.0)
        angles = []
        for turns in range(4):
            turned = np.rot90(image, -turns)  # clockwise on screen
            angles.append(assigner.assign(turned, [point()])[0].angle)
        expected = (angles[0] + 90 * np.arange(4)) % 360
        np.testing.assert_allclose(angles, expected, atol=0.01)

    def test_angles_are_read_from_smoothed_histograms(self, photograph):
        assigner = PatchPoseAssigner(passes=1)
        keypoints = cv2.SIFT.create(300).detect(photograph)
        found = assigner.estimate(photograph, keypoints).angle_deg
        histograms = assigner.histograms(photograph, keypoints)
        bins = assigner.estimator.metadata.bins
        smooth, peaks = (
            find_modes(histograms, bins, smoothing_deg=deg).angle_deg for deg in (15.0, 0.0)
        )
        np.testing.assert_allclose(found, smooth, atol=1e-6)
        apart = np.abs((found - peaks + 180) % 360 - 180)
        assert 0.5 < np.median(apart) < 10  # most move by little

    @pytest.mark.parametrize("octaves", [-1.5, -1, -0.5, 0, 1 / 3, 1])
    def test_zooming_multiplies_the_scale(self, assigner, octaves):
        poses = assigner.estimate(disc(zoom=2**octaves), [point()])
        size_px = SIZE * poses.scale
        np.testing.assert_allclose(np.log2(size_px / POINT_SIZE), octaves, atol=0.05)
        (posed,) = assigner.assign(disc(zoom=2**octaves), [point()])
        assert posed.size == pytest.approx(size_px[0])
        (large,) = assigner.assign(disc(zoom=2**octaves), [point(3 * SIZE)])
        assert large.size == pytest.approx(posed.size)

    @pytest.mark.parametrize("octaves", [-1.5, 0, 1.5])
    def test_zooming_multiplies_a_measured_scale(self, toy_model, octaves):
        assigner = PatchPoseAssigner(toy_model, scale_prior_octaves=None)
        scale = assigner.estimate(disc(zoom=2**octaves), [point(octave=1)]).scale
        np.testing.assert_allclose(np.log2(scale), octaves, atol=0.05)

    @pytest.mark.parametrize("passes", [2, 3])
    def test_a_further_pass_reads_in_the_window_of_the_size_found(self, photograph, passes):
        place = point(size=7.0, x=201.0, y=87.0)
        (before,) = PatchPoseAssigner(passes=passes - 1).assign(photograph, [place])
        window_px = 6 * before.size
        alone = PatchPoseAssigner(window_px=window_px).estimate(photograph, [place])
        (after,) = PatchPoseAssigner(passes=passes).assign(photograph, [place])
        assert after.angle == pytest.approx(alone.angle_deg[0], abs=1e-3)
        change = alone.scale[0] * place.size * 21 / window_px
        assert after.size == pytest.approx(before.size * change, rel=1e-5)
        assert passes > 2 or change != pytest.approx(1, abs=0.02)  # soon nothing changes

    def test_a_second_pass_finds_points_again_after_zooming(self, photograph):
        near = cv2.resize(photograph, None, fx=2.0, fy=2.0, interpolation=cv2.INTER_CUBIC)
        found = create_detector("gftt", 300).detect(photograph)
        moved = [cv2.KeyPoint(2 * k.pt[0] + 0.5, 2 * k.pt[1] + 0.5, k.size) for k in found]

        def share_of_right_scales(passes):
            assigner = PatchPoseAssigner(passes=passes)
            far_px, near_px = (
                np.array([k.size for k in assigner.assign(*seen)])
                for seen in ((photograph, found), (near, moved))
            )
            return np.mean(np.abs(np.log2(near_px / far_px) - 1) < 1 / 6)

        once, twice = share_of_right_scales(1), share_of_right_scales(2)
        assert twice > 0.7 > 0.6 > once
        assert share_of_right_scales("auto") == twice

    def test_a_point_in_a_plain_place_is_read_in_a_wider_window(self):
        image = np.full((120, 120), 230, np.uint8)
        cv2.circle(image, (64, 60), 32, 90, -1)  # beyond the first window, of 32 pixels
        place = point(size=7.0, x=60, y=60)
        (posed,) = PatchPoseAssigner().assign(image, [place])
        (alone,) = PatchPoseAssigner(window_px=64).assign(image, [place])
        assert posed.angle == pytest.approx(alone.angle, abs=1e-3)
        assert posed.angle != -1
        assert posed.size == pytest.approx(alone.size * 21 / 6, rel=1e-5)

    def test_a_larger_keypoint_has_a_smaller_factor(self, assigner):
        sizes = [SIZE, SIZE * 2, SIZE * 0.7]
        posed = assigner.assign(disc(), [point(size) for size in sizes])
        np.testing.assert_allclose([k.size for k in posed], SIZE, rtol=0.04)

    def test_fields_fit_the_descriptor(self, assigner):
        (posed,) = assigner.assign(disc(zoom=2), [point()])
        own_step = round(3 * np.log2(posed.size / 3.2))
        octave = (own_step - 1) // 3
        assert posed.octave == (octave & 255) | (own_step - octave * 3) << 8

    def test_place_and_response_are_kept(self, assigner):
        (posed,) = assigner.assign(disc(), [point(response=0.25, x=118.5, y=121.25)])
        assert posed.pt == (118.5, 121.25)
        assert posed.response == 0.25

    def test_calibration_is_added(self, write_model):
        calibrated = PatchPoseAssigner(write_model(scale_offset_octaves=0.5))
        size_px = SIZE * calibrated.estimate(disc(), [point()]).scale
        np.testing.assert_allclose(np.log2(size_px / POINT_SIZE), 0.5, atol=0.05)

    def test_histograms_are_before_prior_and_calibration(self, assigner):
        found = assigner.histograms(disc(90.0, 2.0), [point(), point(angle=10.0)])
        assert isinstance(found, PoseHistograms)
        assert found.scale.argmax(1).tolist() == [12, 9]  # a point's first pass is an octave below
        assert found.orientation.argmax(1).tolist() == [9, 9]
        np.testing.assert_allclose(found.scale.sum(1), 1, atol=1e-5)


class TestDescriptors:
    def test_the_descriptor_of_one_call_goes_before_the_constructors(self, toy_model):
        assigner = PatchPoseAssigner(toy_model, descriptor="sift")
        (sift,) = assigner.assign(disc(), [point()])
        (orb,) = assigner.assign(disc(), [point()], descriptor="orb")
        (again,) = assigner.assign(disc(), [point()], descriptor=cv2.ORB.create())
        assert orb.size == pytest.approx(6 * sift.size)
        assert orb.octave == round(np.log(orb.size / 31) / np.log(1.2))
        assert fields(orb) == fields(again)
        assert fields(assigner.assign(disc(), [point()])[0]) == fields(sift)

    @pytest.mark.parametrize(
        ("found_by", "given", "factor"),
        [
            (cv2.ORB.create(300, patchSize=21), {"descriptor": cv2.ORB.create(patchSize=21)}, 6),
            (create_detector("brisk", 300), {"detector": "brisk", "descriptor": "vgg"}, 1),
        ],
    )
    def test_what_is_estimated_for_one_call_is_what_it_writes(
        self, photograph, found_by, given, factor
    ):
        found, assigner = found_by.detect(photograph), PatchPoseAssigner(keep_duplicates=True)
        poses = assigner.estimate(photograph, found, **given)
        posed = assigner.assign(photograph, found, **given)
        sizes = [found[i].size for i in poses.keypoint_index] * poses.scale
        np.testing.assert_allclose([k.size for k in posed], factor * sizes, rtol=1e-5)
        np.testing.assert_allclose([k.angle for k in posed], poses.angle_deg, rtol=1e-5)
        usual = assigner.estimate(photograph, found)
        assert not np.allclose(usual.scale, poses.scale, rtol=0.01)
        seen = assigner.histograms(photograph, found, **given)
        other = PatchPoseAssigner(**given).histograms(photograph, found)
        np.testing.assert_array_equal(seen.scale, other.scale)
        assert not np.array_equal(seen.scale, assigner.histograms(photograph, found).scale)

    @pytest.mark.parametrize("name", DESCRIPTORS)
    def test_every_descriptor_can_be_named(self, toy_model, name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            posed = PatchPoseAssigner(toy_model, descriptor=name).assign(disc(), [point()] * 3)
        assert len(posed) == 1

    def test_class_id_is_the_level_where_the_descriptor_reads_it(self, toy_model):
        found = [point(x=CENTER - 1), point()]
        posed = PatchPoseAssigner(toy_model, descriptor="akaze").assign(disc(), found)
        assert [k.class_id for k in posed] == [round(4 * np.log2(k.size / 4.8)) for k in posed]

    @pytest.mark.parametrize(
        ("name", "lost"),
        [("brisk", "angle"), ("latch", "size"), ("lucid", "angle and the size")],
    )
    def test_a_pose_that_does_not_reach_the_descriptor_is_told_once(self, toy_model, name, lost):
        assigner = PatchPoseAssigner(toy_model, descriptor=name)
        with pytest.warns(UserWarning, match=rf"{name} ignores the {lost} of keypoints.*describe"):
            assigner.assign(disc(), [point()])
        assigner.assign(disc(), [point()])  # warnings are errors here

    def test_a_part_that_is_not_written_is_not_lost(self, toy_model):
        PatchPoseAssigner(toy_model, descriptor="brisk", assign_orientation=False).assign(
            disc(), [point()]
        )
        PatchPoseAssigner(toy_model, descriptor="latch", assign_scale=False).assign(
            disc(), [point()]
        )

    def test_duplicates_can_be_kept(self, toy_model):
        found = [point(angle=10.0), point(angle=200.0), point(angle=10.0, x=CENTER - 2)]
        one = PatchPoseAssigner(toy_model).assign(disc(), found)
        every = PatchPoseAssigner(toy_model, keep_duplicates=True).assign(disc(), found)
        assert [k.class_id for k in one] == [0, 2]
        assert [k.class_id for k in every] == [0, 1, 2]


class TestOptions:
    def test_scale_can_be_kept(self, toy_model):
        kept = PatchPoseAssigner(toy_model, assign_scale=False)
        (posed,) = kept.assign(disc(90.0, 2.0), [point()])
        assert posed.size == SIZE
        assert turn_between(posed.angle, 90) < 1

    @pytest.mark.parametrize("name", ["orb", "akaze"])
    def test_a_scale_that_is_kept_is_kept_in_the_descriptor_s_fields(self, toy_model, name):
        image = data.camera()
        found = create_detector(name, 200).detect(image)
        kept = PatchPoseAssigner(toy_model, assign_scale=False, keep_duplicates=True)
        posed = kept.assign(image, found, descriptor=name)
        assert len(posed) == len(found) > 100
        for one, other in zip(posed, found, strict=True):
            assert one.octave == other.octave
            assert one.size == pytest.approx(other.size, rel=1e-5)

    def test_orientation_can_be_kept(self, toy_model):
        kept = PatchPoseAssigner(toy_model, assign_orientation=False, scale_prior_octaves=None)
        posed = kept.assign(disc(90.0, 2.0), [point(angle=-1), point(angle=5), point(angle=6)])
        assert [k.angle for k in posed] == [-1, 5, 6]
        expected = [2 * POINT_SIZE, 2 * SIZE, 2 * SIZE]
        np.testing.assert_allclose([k.size for k in posed], expected, rtol=0.04)

    @pytest.mark.parametrize(("top_k", "count"), [(1, 1), (2, 2), (5, 2)])
    def test_further_poses_stand_next_to_the_best(self, toy_model, top_k, count):
        several = PatchPoseAssigner(toy_model, top_k=top_k)
        image = disc(40.0, second_deg=200.0)
        posed = several.assign(image, [point(), point(size=11.0)])
        assert [k.class_id for k in posed] == [0] * count + [1] * count
        for best in posed[::count]:
            assert turn_between(best.angle, 40) < 5
        for second in posed[1::2] if count == 2 else ():
            assert turn_between(second.angle, 200) < 5
        poses = several.estimate(image, [point(), point(size=11.0)])
        assert isinstance(poses, PatchPoses)
        assert poses.keypoint_index.tolist() == [k.class_id for k in posed]
        assert np.all(np.diff(poses.score.reshape(2, count), axis=1) <= 0)

    @pytest.mark.parametrize("kept", ["assign_scale", "assign_orientation"])
    def test_further_poses_differ_in_what_is_written(self, toy_model, photograph, kept):
        options = {kept: False, "scale_prior_octaves": None}
        found = cv2.SIFT.create(nfeatures=150).detect(photograph, None)
        one, several = (
            PatchPoseAssigner(toy_model, top_k=count, **options).assign(photograph, found)
            for count in (1, 4)
        )
        assert len({fields(k) for k in several}) == len(several) > len(one)

    def test_weak_modes_follow_the_model_s_ratio(self, write_model):
        strict = PatchPoseAssigner(write_model(second_mode_ratio=1.0), top_k=2)
        assert len(strict.assign(disc(40.0, second_deg=200.0), [point()])) == 1

    @pytest.mark.parametrize("size", [3.0, SIZE, 25.0])
    def test_one_window_for_all_measures_absolute_sizes(self, toy_model, size):
        fixed = PatchPoseAssigner(toy_model, window_px=12 * SIZE)
        for zoom in (1.0, 2.0):
            (posed,) = fixed.assign(disc(zoom=zoom), [point(size, angle=0.0)])
            assert posed.size == pytest.approx(SIZE * zoom, rel=0.04)
            scale = fixed.estimate(disc(zoom=zoom), [point(size, angle=0.0)]).scale
            assert scale[0] == pytest.approx(SIZE * zoom / size, rel=0.04)

    @pytest.mark.parametrize("magnification", [6.0, 12.0, 24.0])
    def test_sizes_do_not_depend_on_the_magnification(self, toy_model, magnification):
        other = PatchPoseAssigner(toy_model, magnification=magnification)
        (posed,) = other.assign(disc(), [point()])
        assert posed.size == pytest.approx(SIZE, rel=0.04)

    def test_threads_do_not_change_the_answer(self, toy_model, assigner):
        single = PatchPoseAssigner(toy_model, num_threads=1)
        given = [point(size) for size in (5.0, 8.0, 12.0)]
        for one, many in zip(
            single.assign(disc(20.0), given), assigner.assign(disc(20.0), given), strict=True
        ):
            np.testing.assert_allclose(fields(one), fields(many), rtol=1e-5)


class TestScalePrior:
    image = disc(zoom=2.0)

    def octaves(self, assigner, keypoint):
        return np.log2(assigner.estimate(self.image, [keypoint]).scale[0])

    @pytest.mark.parametrize("measured", [{"angle": 0.5}, {"angle": 200.0}, {"octave": 257}])
    def test_measured_scales_are_held(self, assigner, measured):
        assert 0 < self.octaves(assigner, point(**measured)) < 0.9

    @pytest.mark.parametrize("angle", [-1.0, 0.0])
    def test_plain_points_are_free(self, assigner, angle):
        octaves = self.octaves(assigner, point(angle=angle)) - np.log2(POINT_SIZE / SIZE)
        assert octaves == pytest.approx(1, abs=0.05)

    def test_a_number_holds_for_all(self, toy_model):
        narrow = PatchPoseAssigner(toy_model, scale_prior_octaves=1e-3)
        for keypoint in (point(), point(angle=200.0)):
            assert self.octaves(narrow, keypoint) == pytest.approx(0, abs=1e-3)

    def test_it_holds_in_every_pass(self, toy_model):
        narrow = PatchPoseAssigner(toy_model, scale_prior_octaves=1e-3, passes=3)
        assert self.octaves(narrow, point()) == pytest.approx(0, abs=0.01)

    @pytest.mark.parametrize("none", [None, np.inf])
    def test_none_frees_all(self, toy_model, none):
        free = PatchPoseAssigner(toy_model, scale_prior_octaves=none)
        assert self.octaves(free, point(angle=200.0)) == pytest.approx(1, abs=0.05)

    def test_a_model_without_prior_frees_all(self, write_model):
        free = PatchPoseAssigner(write_model(scale_prior_octaves=None))
        assert self.octaves(free, point(angle=200.0)) == pytest.approx(1, abs=0.05)

    def test_the_prior_is_around_the_size_whatever_the_magnification(self, toy_model):
        other = PatchPoseAssigner(toy_model, magnification=24.0, scale_prior_octaves=1e-3)
        assert self.octaves(other, point()) == pytest.approx(0, abs=1e-3)


class TestKeypoints:
    def test_empty_in_empty_out(self, assigner):
        for empty in ([], ()):
            assert assigner.assign(disc(), empty) == ()
            assert len(assigner.estimate(disc(), empty)) == 0
            found = assigner.histograms(disc(), empty)
            assert (found.scale.shape, found.orientation.shape) == ((0, 13), (0, 36))

    def test_order_is_kept(self, assigner):
        sizes = [9.0, 14.0, 7.0, 11.0]
        posed = assigner.assign(disc(), [point(size) for size in sizes])
        assert [k.class_id for k in posed] == [0, 1, 2, 3]

    def test_orientations_of_one_point_become_one_keypoint(self, assigner):
        given = [point(angle=10), point(12.0), point(angle=90), point(angle=200)]
        posed = assigner.assign(disc(30.0), given)
        assert [k.class_id for k in posed] == [0, 1]
        assert len(assigner.estimate(disc(30.0), given)) == 4

    def test_sift_s_duplicates_go(self, assigner, photograph):
        found = cv2.SIFT.create(nfeatures=600).detect(photograph, None)
        posed = assigner.assign(photograph, found)
        places = {(k.pt, found[k.class_id].size) for k in posed}
        assert len(places) == len(posed) == len({(k.pt, k.size) for k in found}) < len(found)
        assert all(k.pt == found[k.class_id].pt for k in posed)

    def test_nothing_is_mutated(self, assigner, photograph):
        found = cv2.SIFT.create(nfeatures=100).detect(photograph, None)
        before = [fields(k) for k in found]
        image = photograph.copy()
        assigner.assign(image, found)
        assert [fields(k) for k in found] == before
        np.testing.assert_array_equal(image, photograph)

    def test_a_batch_is_the_same_as_one_by_one(self, assigner, photograph):
        found = cv2.SIFT.create(nfeatures=30).detect(photograph, None)
        together = assigner.estimate(photograph, found)
        alone = [assigner.estimate(photograph, [keypoint]) for keypoint in found]
        for name in ("scale", "angle_deg", "score"):
            each = np.concatenate([getattr(poses, name) for poses in alone])
            np.testing.assert_allclose(getattr(together, name), each, rtol=1e-4)

    def test_more_keypoints_than_a_chunk(self, assigner, photograph):
        places = np.random.default_rng(0).uniform(0, 511, (2500, 2))
        given = [point(x=float(x), y=float(y)) for x, y in places]
        posed = assigner.assign(photograph, given)
        assert [k.class_id for k in posed] == list(range(2500))
        (last,) = assigner.assign(photograph, given[-1:])
        np.testing.assert_allclose(fields(last)[:4], fields(posed[-1])[:4], rtol=1e-4)

    def test_points_and_measured_keypoints_together_are_posed_as_apart(self, photograph):
        points = create_detector("gftt", 400).detect(photograph)
        measured = cv2.SIFT.create(nfeatures=400).detect(photograph, None)
        assigner = PatchPoseAssigner(top_k=2, scale_prior_octaves=None)
        together = assigner.estimate(photograph, [*points, *measured])  # more than a chunk
        are_points = together.keypoint_index < len(points)
        for mine, given in ((are_points, points), (~are_points, measured)):
            alone = assigner.estimate(photograph, given)
            np.testing.assert_allclose(together.scale[mine], alone.scale, rtol=1e-4)
            np.testing.assert_allclose(together.score[mine], alone.score, rtol=1e-3)

    def test_a_flat_histogram_keeps_the_pose(self, flat_model):
        flat = PatchPoseAssigner(flat_model, top_k=3)
        given = [point(angle=33.0), point(12.0, angle=-1.0)]
        posed = flat.assign(disc(), given)
        assert [k.angle for k in posed] == [33.0, -1.0]
        assert [k.size for k in posed] == [SIZE, 12.0]
        assert flat.estimate(disc(), given).angle_deg.tolist() == [-1, -1]

    @pytest.mark.parametrize("model", ["polar", "resnet18"])
    @pytest.mark.parametrize("value", [0, 90, 255])
    def test_where_nothing_is_to_be_seen_the_pose_is_kept(self, model, value):
        image = np.full((120, 150, 3), value, np.uint8)
        image[:, 120:] = np.arange(30)[:, None]  # far from the first two
        given = [
            point(angle=33.0, x=50, y=60),
            point(12.0, octave=256, x=50, y=60),
            point(5.0, octave=256, x=130, y=60),
        ]
        assigner = PatchPoseAssigner(model, magnification=4.0)
        posed = assigner.assign(image, given)
        assert [(k.size, k.angle) for k in posed[:2]] == [(k.size, k.angle) for k in given[:2]]
        assert posed[2].angle != -1
        found = assigner.histograms(image, given)
        assert [np.ptp(row) == 0 for row in found.scale] == [True, True, False]

    def test_a_flat_histogram_keeps_the_size_also_with_one_window(self, flat_model):
        flat = PatchPoseAssigner(flat_model, window_px=50.0)
        assert flat.assign(disc(), [point(12.0)])[0].size == 12.0

    def test_keypoints_are_described(self, assigner, photograph):
        sift = cv2.SIFT.create(nfeatures=200)
        posed = assigner.assign(photograph, sift.detect(photograph, None))
        described, descriptors = sift.compute(photograph, posed)
        assert len(described) == len(posed)
        assert np.all(descriptors.any(axis=1))


class TestImages:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    def test_depths_agree(self, assigner, photograph, dtype):
        top = {np.uint8: 255, np.uint16: 65535, np.float32: 1.0}[dtype]
        gray = cv2.cvtColor(photograph, cv2.COLOR_BGR2GRAY)
        image = (gray * (top / 255)).astype(dtype)
        given = [point(x=100.0), point(x=200.0), point(x=300.0)]
        found, expected = assigner.histograms(image, given), assigner.histograms(gray, given)
        np.testing.assert_allclose(found.orientation, expected.orientation, atol=0.02)

    @pytest.mark.parametrize(
        "change",
        [
            lambda gray: gray.astype(np.uint16),  # 8 bits of 16
            lambda gray: 30000 + 2 * gray.astype(np.uint16),  # thermal
            lambda gray: gray * np.float32(4e-6),
            lambda gray: np.dstack([*[gray.astype(np.uint16)] * 3, np.full_like(gray, 65535, "H")]),
        ],
    )
    def test_contrast_is_that_of_the_image_s_own_range(self, photograph, change):
        assigner = PatchPoseAssigner()
        gray = cv2.cvtColor(photograph, cv2.COLOR_BGR2GRAY)
        gray = cv2.normalize(gray, None, 0, 255, cv2.NORM_MINMAX)
        given = [point(x=x, size=12.0, angle=30.0) for x in range(80, 400, 8)]
        before = change(gray)
        image = before.copy()
        found, expected = assigner.estimate(image, given), assigner.estimate(gray, given)
        np.testing.assert_array_equal(image, before)
        off = (found.angle_deg - expected.angle_deg + 180) % 360 - 180
        octaves = np.log2(found.scale / expected.scale)
        assert np.mean((abs(off) < 1) & (abs(octaves) < 0.02)) > 0.95  # peaks may be as high

    def test_layouts_agree(self, assigner, photograph):
        given = [point(x=100.0), point(x=200.0)]
        expected = [fields(k) for k in assigner.assign(photograph, given)]
        bgra = cv2.cvtColor(photograph, cv2.COLOR_BGR2BGRA)
        for image in (bgra, np.asfortranarray(photograph), cv2.UMat(photograph.copy())):
            posed = [fields(k) for k in assigner.assign(image, given)]
            np.testing.assert_allclose(posed, expected, rtol=1e-4)

    @pytest.mark.parametrize("image", [None, "image.png", [[1, 2], [3, 4]]])
    def test_other_things_are_no_image(self, assigner, image):
        with pytest.raises(TypeError, match="image: expected"):
            assigner.assign(image, [])

    @pytest.mark.parametrize(
        "image",
        [
            np.zeros((20, 20, 2), np.uint8),
            np.zeros(20, np.uint8),
            np.zeros((20, 20), np.int32),
            np.full((20, 20), np.nan, np.float32),
            np.zeros((0, 20), np.uint8),
        ],
    )
    def test_unusable_images_are_named(self, assigner, image):
        with pytest.raises(ValueError, match="image: expected"):
            assigner.assign(image, [])

    @pytest.mark.parametrize("model", ["polar", "resnet18"])
    def test_floats_may_have_any_range(self, photograph, model):
        image = cv2.normalize(photograph, None, 0, 255, cv2.NORM_MINMAX).astype(np.float32)
        assigner, given = PatchPoseAssigner(model), [point(x=300.0, y=200.0)]
        one, other = (assigner.assign(i, given)[0] for i in (image, image / 255))
        np.testing.assert_allclose(fields(one), fields(other), rtol=0.01)

    def test_frames_of_one_value_are_blank(self):
        assigner, given = PatchPoseAssigner("resnet18"), [point(x=40.0, y=40.0)]
        image = np.full((90, 90, 3), 255, np.float32)
        (found,), (expected,) = (assigner.assign(i, given) for i in (image, np.uint8(image)))
        assert fields(found) == fields(expected)
        assert found.angle == -1

    def test_keypoints_must_lie_on_it(self, assigner):
        with pytest.raises(ValueError, match="keypoints: expected centres on the 241 x 241 image"):
            assigner.assign(disc(), [point(x=300.0)])


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"top_k": 0}, "top_k: expected an integer of at least 1, got 0"),
            ({"top_k": 1.5}, "top_k: expected an integer of at least 1, got 1.5"),
            ({"passes": 0}, 'passes: expected "auto" or an integer from 1 to 16, got 0'),
            ({"passes": 17}, 'passes: expected "auto" or an integer from 1 to 16, got 17'),
            ({"passes": "2"}, "passes: expected \"auto\" or an integer from 1 to 16, got '2'"),
            ({"magnification": 0}, "magnification: expected a finite number above 0"),
            ({"window_px": float("nan")}, "window_px: expected a finite number above 0"),
            ({"window_px": 9, "magnification": 9}, "window_px: expected None together with"),
            ({"window_px": 9, "scale_prior_octaves": 0.1}, 'scale_prior_octaves: expected "auto"'),
            ({"scale_prior_octaves": -1}, 'scale_prior_octaves: expected "auto", a number'),
            ({"scale_prior_octaves": "wide"}, 'scale_prior_octaves: expected "auto", a number'),
            ({"descriptor": "surf"}, "descriptor: expected one of sift, orb, .* got 'surf'"),
            ({"scale_prior_octaves": np.ones(2)}, 'scale_prior_octaves: expected "auto", a number'),
            ({"num_threads": 0}, "num_threads: expected at least 1"),
            ({"num_threads": True}, "num_threads: expected at least 1"),
        ],
    )
    def test_options_out_of_range_are_named(self, toy_model, options, message):
        with pytest.raises(ValueError, match=message):
            PatchPoseAssigner(toy_model, **options)

    def test_unknown_options_are_refused(self, toy_model):
        with pytest.raises(TypeError):
            PatchPoseAssigner(toy_model, topk=2)

    @pytest.mark.parametrize("name", ["assign_scale", "assign_orientation", "keep_duplicates"])
    @pytest.mark.parametrize("value", ["no", None, 2])
    def test_switches_are_true_or_false(self, toy_model, name, value):
        with pytest.raises(TypeError, match=f"{name}: expected True or False, got {value!r}"):
            PatchPoseAssigner(toy_model, **{name: value})

    def test_numbers_of_numpy_are_numbers(self, toy_model):
        options = {"num_threads": np.int64(2), "top_k": np.int64(2), "window_px": np.float32(60)}
        assigner = PatchPoseAssigner(toy_model, **options, assign_scale=np.bool_(False))
        assert len(assigner.assign(disc(), [point()])) > 0

    def test_numbers_must_be_numbers(self, toy_model):
        with pytest.raises(TypeError, match="magnification: expected a number or None, got True"):
            PatchPoseAssigner(toy_model, magnification=True)
        with pytest.raises(TypeError, match="magnification: expected a number or None, got '12'"):
            PatchPoseAssigner(toy_model, magnification="12")

    def test_missing_models_are_named(self, tmp_path):
        with pytest.raises(
            ModelError, match=r"none\.onnx: expected a model bundled with this version \(polar"
        ):
            PatchPoseAssigner(tmp_path / "none.onnx")


def test_a_pickled_copy_does_the_same(toy_model):
    original = PatchPoseAssigner(toy_model, top_k=2, descriptor=cv2.SIFT.create(nOctaveLayers=4))
    copy = pickle.loads(pickle.dumps(original))
    posed = [[fields(k) for k in a.assign(disc(50.0), [point()])] for a in (original, copy)]
    assert posed[0] == posed[1]
