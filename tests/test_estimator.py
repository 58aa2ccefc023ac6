"""ONNX models: both engines, metadata, and messages for files that cannot be used."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import cv2
import numpy as np
import onnx
import pytest
from onnx import helper

from cv_patchpose.errors import ModelError
from cv_patchpose.estimator import BUNDLED_MODELS, PoseEstimator
from cv_patchpose.histograms import PoseBins
from cv_patchpose.metadata import METADATA_KEY, ModelMetadata, read_metadata
from cv_patchpose.patches import PolarGrid, SquareGrid

ENGINES = ("onnxruntime", "opencv")


def patches(count, seed=0):
    return np.random.default_rng(seed).random((count, 1, 40, 80), np.float32)


@pytest.fixture(params=ENGINES)
def engine(request):
    if request.param == "onnxruntime":
        pytest.importorskip("onnxruntime")
    return request.param


class TestEngines:
    def test_they_agree_while_the_batch_size_changes(self, toy_model):
        pytest.importorskip("onnxruntime")
        runtime, opencv = (PoseEstimator(toy_model, engine=name) for name in ENGINES)
        for count in (16, 5, 16, 1, 300):
            ours, theirs = (e.histograms(patches(count, count)) for e in (runtime, opencv))
            np.testing.assert_allclose(ours.scale, theirs.scale, atol=1e-5)
            np.testing.assert_allclose(ours.orientation, theirs.orientation, atol=1e-5)

    def test_a_batch_is_the_same_as_one_by_one(self, toy_model, engine):
        estimator = PoseEstimator(toy_model, engine=engine)
        given = patches(300)
        together = estimator.histograms(given)
        for index in (0, 7, 255, 256, 299):
            alone = estimator.histograms(given[[index]])
            np.testing.assert_allclose(together.scale[[index]], alone.scale, atol=1e-6)
            np.testing.assert_allclose(together.orientation[[index]], alone.orientation, atol=1e-6)

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_rows_are_float32_and_sum_to_one(self, toy_model, engine, count):
        found = PoseEstimator(toy_model, engine=engine).histograms(patches(count))
        assert found.scale.shape == (count, 13)
        assert found.orientation.shape == (count, 36)
        for rows in (found.scale, found.orientation):
            assert rows.dtype == np.float32
            np.testing.assert_allclose(rows.sum(1), 1, atol=1e-5)

    def test_columns_of_the_patch_roll_the_orientation(self, toy_model, engine):
        inner = patches(4)[..., 4:-4]
        estimator = PoseEstimator(toy_model, engine=engine)

        def orientation(shift):
            rolled = np.roll(inner, 2 * shift, axis=3)
            around = np.concatenate([rolled[..., -4:], rolled, rolled[..., :4]], axis=3)
            return estimator.histograms(around)

        upright = orientation(0)
        for shift in (1, 17, 35):
            turned = orientation(shift)
            expected = np.roll(upright.orientation, shift, axis=1)
            np.testing.assert_allclose(turned.orientation, expected, atol=1e-5)
            np.testing.assert_allclose(turned.scale, upright.scale, atol=1e-5)

    def test_threads_may_share_an_estimator(self, toy_model, engine):
        estimator = PoseEstimator(toy_model, engine=engine)
        given = [patches(count, count) for count in (1, 64, 7, 33) * 8]
        expected = [estimator.histograms(part).scale for part in given]
        with ThreadPoolExecutor(4) as pool:
            found = [histograms.scale for histograms in pool.map(estimator.histograms, given)]
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)

    def test_a_copy_opens_the_model_again(self, toy_model, engine):
        estimator = PoseEstimator(toy_model, engine=engine, num_threads=1)
        copy = pickle.loads(pickle.dumps(estimator))
        assert (copy.engine, copy.path, copy.metadata) == (
            engine, estimator.path, estimator.metadata,
        )  # fmt: skip
        given = patches(3)
        np.testing.assert_array_equal(
            copy.histograms(given).scale, estimator.histograms(given).scale
        )


@pytest.mark.parametrize("name", BUNDLED_MODELS)
def test_engines_agree_on_bundled_models(name):
    """Float to rounding; in eight bits a value on the edge may be rounded to either side."""
    pytest.importorskip("onnxruntime")
    runtime, opencv = (PoseEstimator(name, engine=engine) for engine in ENGINES)
    rng = np.random.default_rng(0)
    differences = []
    for count in (16, 5, 16):
        given = rng.standard_normal((count, *runtime.metadata.patch_shape)).astype(np.float32)
        ours, theirs = (estimator.histograms(given) for estimator in (runtime, opencv))
        for one, other in zip(vars(ours).values(), vars(theirs).values(), strict=True):
            differences.extend(np.abs(one - other).max(1).tolist())
    assert np.quantile(differences, 0.95) <= 2e-5
    eight_bits = "eight_bits" in runtime.metadata.training
    assert max(differences) <= (1e-3 if eight_bits else 1e-4)


class TestChoice:
    def test_onnx_runtime_is_preferred(self, toy_model):
        pytest.importorskip("onnxruntime")
        assert PoseEstimator(toy_model).engine == "onnxruntime"

    def test_opencv_takes_over_where_it_is_missing(self, toy_model, monkeypatch, caplog):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        estimator = PoseEstimator(toy_model)
        assert estimator.engine == "opencv"
        assert estimator.providers == ("OpenCV",)
        assert caplog.text == ""
        with pytest.raises(ValueError, match="engine: expected an onnxruntime that can be import"):
            PoseEstimator(toy_model, engine="onnxruntime")

    def test_providers_are_missed_where_opencv_takes_over(self, toy_model, monkeypatch, caplog):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        PoseEstimator(toy_model, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
        (record,) = caplog.records
        assert (
            record.getMessage()
            == "the execution provider CUDAExecutionProvider is not available: going on without it"
        )

    def test_opencv_takes_over_where_it_is_broken(self, toy_model, monkeypatch, tmp_path, caplog):
        folder = tmp_path / "onnxruntime"
        folder.mkdir()
        (folder / "__init__.py").write_text("raise ImportError('DLL load failed')")
        for name in [n for n in sys.modules if n.split(".")[0] == "onnxruntime"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(tmp_path)
        assert PoseEstimator(toy_model).engine == "opencv"
        assert "onnxruntime fails: DLL load failed" in caplog.text
        with pytest.raises(ValueError, match=r"engine: expected an onnxruntime .* DLL load failed"):
            PoseEstimator(toy_model, engine="onnxruntime")

    def test_a_bundled_model_is_pickled_by_name(self, toy_model, monkeypatch):
        original = PoseEstimator("polar")
        pickled = pickle.dumps(original)
        assert str(original.path.parent).encode() not in pickled
        monkeypatch.setattr("cv_patchpose.estimator._bundled_path", lambda name: toy_model)
        assert pickle.loads(pickled).path == toy_model

    def test_a_copy_chooses_anew(self, toy_model, monkeypatch):
        pytest.importorskip("onnxruntime")
        pickled = pickle.dumps(PoseEstimator(toy_model))
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        assert pickle.loads(pickled).engine == "opencv"

    def test_providers_really_used_are_reported(self, toy_model, caplog):
        onnxruntime = pytest.importorskip("onnxruntime")
        assert PoseEstimator(toy_model).providers == ("CPUExecutionProvider",)
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            asked = PoseEstimator(toy_model, providers=["CUDAExecutionProvider"])
            assert asked.providers == ("CPUExecutionProvider",)
            assert "CUDAExecutionProvider is not available" in caplog.text

    def test_batches_on_several_threads_change_nothing(self):
        pytest.importorskip("onnxruntime")
        one, several = PoseEstimator(num_threads=1), PoseEstimator(num_threads=3)
        assert several.batch == 3 * one.batch
        patches = np.random.default_rng(0).standard_normal((500, *one.metadata.patch_shape))
        found, expected = (e.histograms(patches.astype(np.float32)) for e in (several, one))
        np.testing.assert_array_equal(found.scale, expected.scale)
        np.testing.assert_array_equal(found.orientation, expected.orientation)

    def test_what_fails_on_another_thread_is_raised(self, toy_model, monkeypatch):
        pytest.importorskip("onnxruntime")
        estimator = PoseEstimator(toy_model, num_threads=2)
        run = estimator._engine.run

        def run_here_only(inputs):
            if threading.current_thread() is not threading.main_thread():
                raise RuntimeError("elsewhere")
            time.sleep(0.01)
            return run(inputs)

        monkeypatch.setattr(estimator._engine, "run", run_here_only)
        with pytest.raises(RuntimeError, match="elsewhere"):
            estimator.histograms(patches(8 * estimator.batch))

    def test_a_thread_that_outlives_the_main_one_is_served(self, toy_model):
        pytest.importorskip("onnxruntime")
        program = f"""
            import threading, time
            import numpy as np
            from cv_patchpose.estimator import PoseEstimator

            estimator = PoseEstimator({str(toy_model)!r}, num_threads=2)

            def work():
                threading.main_thread().join()
                time.sleep(0.2)  # the interpreter is shutting down
                print(len(estimator.histograms(np.zeros((500, 1, 40, 80), np.float32)).scale))

            threading.Thread(target=work).start()
        """
        command = [sys.executable, "-c", textwrap.dedent(program)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == "500\n", done.stderr

    def test_opencv_s_threads_are_asked_for_at_each_call(self, toy_model, monkeypatch):
        pytest.importorskip("onnxruntime")
        free, fixed = PoseEstimator(toy_model), PoseEstimator(toy_model, num_threads=2)
        one = fixed.batch // 2
        for count, batches in ((5, 5), (1, 1), (0, 1)):
            monkeypatch.setattr(cv2, "getNumThreads", lambda count=count: count)
            assert free.batch == batches * one
            assert fixed.batch == 2 * one

    def test_a_gpu_gets_large_batches_bound_to_it(self, toy_model, monkeypatch):
        """The path of a GPU, on the processor: the binding is the same for both."""
        onnxruntime = pytest.importorskip("onnxruntime")
        on_cpu = PoseEstimator(toy_model)
        names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda _: names)
        bound = PoseEstimator(toy_model)
        assert bound.providers == tuple(names)
        assert bound.batch > on_cpu.batch
        count = bound.batch + 3
        random = np.random.default_rng(0)
        patches = random.standard_normal((count, *on_cpu.metadata.patch_shape)).astype(np.float32)
        run = mock.Mock(wraps=bound._engine._session.run_with_iobinding)
        monkeypatch.setattr(bound._engine._session, "run_with_iobinding", run)
        found, expected = bound.histograms(patches), on_cpu.histograms(patches)
        assert run.call_count == 2
        np.testing.assert_allclose(found.scale, expected.scale, atol=1e-6)
        np.testing.assert_allclose(found.orientation, expected.orientation, atol=1e-6)

    def test_a_gpu_agrees_with_the_processor(self):
        onnxruntime = pytest.importorskip("onnxruntime")
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            pytest.skip("no CUDAExecutionProvider")
        on_cpu = PoseEstimator()
        on_gpu = PoseEstimator(providers=["CUDAExecutionProvider"])
        patches = np.random.default_rng(0).standard_normal((300, *on_cpu.metadata.patch_shape))
        found, expected = (e.histograms(patches.astype(np.float32)) for e in (on_gpu, on_cpu))
        np.testing.assert_allclose(found.scale, expected.scale, atol=2e-3)
        np.testing.assert_allclose(found.orientation, expected.orientation, atol=2e-3)

    def test_bad_options_are_named(self, toy_model):
        with pytest.raises(ValueError, match="engine: expected one of onnxruntime, opencv or None"):
            PoseEstimator(toy_model, engine="torch")
        with pytest.raises(TypeError, match="providers: expected a list or tuple of names"):
            PoseEstimator(toy_model, providers="CPUExecutionProvider")
        with pytest.raises(ValueError, match="num_threads: expected at least 1 or None, got 0"):
            PoseEstimator(toy_model, num_threads=0)
        with pytest.raises(TypeError, match="model: expected a name or a path, got int"):
            PoseEstimator(3)

    @pytest.mark.parametrize("shape", [(2, 1, 40, 72), (2, 3, 40, 80), (1, 40, 80)])
    def test_patches_of_another_shape_are_refused(self, toy_model, shape):
        message = re.escape(f"patches: expected (N, 1, 40, 80), got {shape}")
        with pytest.raises(ValueError, match=message):
            PoseEstimator(toy_model).histograms(np.zeros(shape, np.float32))


class TestMetadata:
    @pytest.mark.parametrize(
        "metadata",
        [
            ModelMetadata("a", PolarGrid(rows=30, halo=6), PoseBins(), standardize=True),
            ModelMetadata("b", SquareGrid(size=32), PoseBins(18, 5, 2), color=True),
            ModelMetadata(
                "c", PolarGrid(), PoseBins(), magnification=9.0, scale_offset_octaves=-0.25,
                scale_prior_octaves=0.2, second_mode_ratio=0.5, training={"commit": "x"},
            ),
        ],
    )  # fmt: skip
    def test_round_trip(self, metadata):
        assert ModelMetadata.from_json(metadata.to_json()) == metadata

    def test_shape_of_the_patches(self):
        assert ModelMetadata("a", PolarGrid(), PoseBins()).patch_shape == (1, 40, 80)
        square = ModelMetadata("b", SquareGrid(), PoseBins(), color=True)
        assert square.patch_shape == (3, 32, 32)

    def test_the_file_s_properties_are_read_as_onnx_reads_them(self, toy_model):
        properties = {p.key: p.value for p in onnx.load(toy_model).metadata_props}
        expected = ModelMetadata.from_json(properties[METADATA_KEY])
        assert read_metadata(toy_model.read_bytes(), "toy") == expected

    @pytest.mark.parametrize(
        ("entry", "value"),
        [
            ("magnification", 0),
            ("magnification", "12"),
            ("scale_offset_octaves", float("nan")),
            ("scale_prior_octaves", -1),
            ("second_mode_ratio", 1.5),
            ("standardize", 1),
            ("name", None),
            ("bins", {"orientation": 36}),
            ("bins", {"orientation": 0, "scale": 13, "scale_per_octave": 3}),
            ("bins", {"rotation": 36}),
            ("grid", {"kind": "hexagonal"}),
            ("grid", {"kind": "polar", "rings": 4}),
            ("grid", {"kind": "polar", "rows": 0}),
            ("grid", {"kind": "square", "size": 32, "color": False}),  # and standardize
            ("format", 2),
            ("surplus", 1),
        ],
    )
    def test_unusable_entries_are_model_errors(self, toy_model, replace_metadata, entry, value):
        good = json.loads(
            {p.key: p.value for p in onnx.load(toy_model).metadata_props}[METADATA_KEY]
        )
        path = replace_metadata(json.dumps(good | {"standardize": True} | {entry: value}))
        with pytest.raises(ModelError, match=re.escape(str(path))) as caught:
            PoseEstimator(path)
        assert 'expected an ONNX model with "patchpose" metadata, format 1, got' in str(
            caught.value
        )

    @pytest.mark.parametrize("entry", ["takes_prior", "point_window_px"])
    def test_entries_are_not_guessed(self, entry):
        entries = json.loads(ModelMetadata("a", PolarGrid(), PoseBins()).to_json())
        del entries[entry]
        with pytest.raises(ValueError, match=f"missing or foreign {entry}"):
            ModelMetadata.from_json(json.dumps(entries))

    @pytest.mark.parametrize("text", ["{", "[]", "3", "{}"])
    def test_other_json_is_a_model_error(self, replace_metadata, text):
        with pytest.raises(ModelError, match="format 1, got"):
            PoseEstimator(replace_metadata(text))


class TestBadFiles:
    def test_missing(self, tmp_path):
        path = tmp_path / "none.onnx"
        names = ", ".join(BUNDLED_MODELS)
        for model in (path, "vgg"):
            message = f"{model}: expected a model bundled with this version ({names}) or the path"
            with pytest.raises(ModelError, match=re.escape(message)):
                PoseEstimator(model)

    def test_a_folder(self, tmp_path):
        with pytest.raises(ModelError, match="got neither"):
            PoseEstimator(tmp_path)

    def test_foreign_model(self, replace_metadata):
        with pytest.raises(ModelError, match="got metadata properties: other"):
            PoseEstimator(replace_metadata(None))

    @pytest.mark.parametrize("content", [b"", b"\x00", b"not a model at all", b"\xff" * 100])
    def test_no_model(self, tmp_path, content):
        path = tmp_path / "text.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=re.escape(str(path))):
            PoseEstimator(path)

    def test_cut_off(self, toy_model, tmp_path, engine):
        content = toy_model.read_bytes()
        path = tmp_path / "cut.onnx"
        for length in range(1, len(content), 97):
            path.write_bytes(content[:length])
            with pytest.raises(ModelError):
                PoseEstimator(path, engine=engine)

    def test_damaged_weights(self, toy_model, tmp_path):
        pytest.importorskip("onnxruntime")  # cv2.dnn takes NaN for 0
        model = onnx.load(toy_model)
        for weights in model.graph.initializer:
            values = onnx.numpy_helper.to_array(weights).copy()
            if values.dtype == np.float32:
                values.flat[0] = np.nan
                weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
        path = tmp_path / "damaged.onnx"
        onnx.save(model, path)
        with pytest.raises(ModelError, match=f"{re.escape(str(path))}: expected finite histograms"):
            PoseEstimator(path)

    def test_patches_that_are_not_finite(self, toy_model):
        pytest.importorskip("onnxruntime")
        estimator = PoseEstimator(toy_model)
        spoilt = patches(3)
        spoilt[1, 0, 2, 3] = np.nan
        with pytest.raises(ModelError, match="expected finite histograms, got NaN or infinite"):
            estimator.histograms(spoilt)

    def test_other_outputs(self, write_model, engine):
        path = write_model(bins=PoseBins(scale=11))
        with pytest.raises(ModelError, match=r"of shape .*\(1, 11\).*\(1, 13\).*; export it again"):
            PoseEstimator(path, engine=engine)

    def test_other_inputs(self, toy_model, tmp_path, engine):
        model = onnx.load(toy_model)
        entry = next(p for p in model.metadata_props if p.key == METADATA_KEY)
        metadata = json.loads(entry.value)
        metadata["grid"]["columns"] = 60
        helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
        path = tmp_path / "narrow.onnx"
        onnx.save(model, path)
        message = re.escape(str(path)) + r"(.|\n)*; export it again"
        with pytest.raises(ModelError, match=message):
            PoseEstimator(path, engine=engine)


def test_opencv_s_threads_are_left_alone(toy_model):
    before = cv2.getNumThreads()
    PoseEstimator(toy_model, num_threads=1)
    PoseEstimator(toy_model, num_threads=1, engine="opencv")
    assert cv2.getNumThreads() == before
