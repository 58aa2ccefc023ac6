"""Pose histograms of patches from an ONNX model."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.errors import ModelError
from cv_patchpose.histograms import PoseHistograms
from cv_patchpose.metadata import ModelMetadata, read_metadata

BUNDLED_MODELS = ("polar", "polar-large", "resnet18")
ENGINES = ("onnxruntime", "opencv")

_BATCH = 64  # whose features fit a processor's caches
_GPU_BATCH = 4096  # fills a GPU
_OUTPUTS = ("scale", "orientation")
_CPU_PROVIDER = "CPUExecutionProvider"
_GPU_PROVIDERS = {
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
    "ROCMExecutionProvider",
    "DmlExecutionProvider",
}
# The default search times every way to convolve for each new number of patches.
_PROVIDER_OPTIONS = {"CUDAExecutionProvider": {"cudnn_conv_algo_search": "HEURISTIC"}}


class _Engine(Protocol):
    providers: tuple[str, ...]
    batch: int  # patches of one run

    @property
    def num_threads(self) -> int:
        """Runs at once."""

    def run(self, inputs: Mapping[str, NDArray[np.float32]]) -> Sequence[NDArray[np.float32]]:
        """Return the scale and the orientation histograms of a batch, from inputs by name."""


class PoseEstimator:
    """Estimates pose histograms of patches with an ONNX model.

    Can be pickled; the copy opens the model again, a bundled one where the package then lies.

    Attributes:
        path: Of the model's file.
        metadata: Of the model.
        engine: "onnxruntime" or "opencv", the one in use.
        providers: Execution providers really in use, most preferred first.

    Args:
        model: One of `BUNDLED_MODELS` or the path of an exported ONNX file.
        engine: "onnxruntime" or "opencv" (cv2.dnn, always there); None: ONNX Runtime where it can
            be imported.
        providers: Execution providers of ONNX Runtime in order of preference, for example
            ["CUDAExecutionProvider"]; those that are not available are left out, and the CPU is
            always the last one. None: the CPU.
        num_threads: Batches that ONNX Runtime works on at once; None: cv2.getNumThreads() at each
            call. cv2.dnn has OpenCV's threads.

    Raises:
        ModelError: The model is missing, foreign or broken.
        ValueError: An unknown engine, or one that cannot be imported; a bad number of threads.
        TypeError: Providers that are not a list or tuple of names.
    """

    def __init__(
        self,
        model: str | Path = "polar",
        *,
        engine: str | None = None,
        providers: Sequence[str] | None = None,
        num_threads: int | None = None,
    ) -> None:
        self._settings: dict[str, Any] = {
            "engine": engine,
            "providers": _check_providers(providers),
            "num_threads": _check_threads(num_threads),
        }
        self._model = model
        self._open()

    def histograms(
        self, patches: NDArray[np.float32], log_prior: NDArray[np.float32] | None = None
    ) -> PoseHistograms:
        """Estimate the histograms of N patches, in batches.

        Args:
            patches: (N, C, H, W) float32, sampled as `metadata` says.
            log_prior: (N, S) float32, what is known of the scale beforehand, see
                `log_scale_prior`; None: nothing. It is not applied to the scale histogram;
                models that take it read the orientation at the scale that it makes probable.

        Raises:
            ModelError: Histograms that are not finite, as of a damaged file.
            ValueError: Patches or a prior of another shape.
        """
        shape = self.metadata.patch_shape
        if patches.ndim != 4 or patches.shape[1:] != shape:
            raise ValueError(f"patches: expected (N, {str(shape)[1:]}, got {patches.shape}")
        bins = self.metadata.bins
        inputs = {"patches": patches}
        if self.metadata.takes_prior:
            if log_prior is None:
                log_prior = np.zeros((len(patches), bins.scale), np.float32)
            if log_prior.shape != (len(patches), bins.scale):
                raise ValueError(
                    f"log_prior: expected ({len(patches)}, {bins.scale}), got {log_prior.shape}"
                )
            inputs["log_prior"] = log_prior
        scale = np.empty((len(patches), bins.scale), np.float32)
        orientation = np.empty((len(patches), bins.orientation), np.float32)

        def estimate(first: int) -> None:
            batch = slice(first, first + self._engine.batch)
            scale[batch], orientation[batch] = self._engine.run(
                {k: np.ascontiguousarray(v[batch], np.float32) for k, v in inputs.items()}
            )

        firsts = range(0, len(patches), self._engine.batch)
        left = iter(firsts)  # of which each thread takes the next
        failures: list[BaseException] = []

        def work() -> None:
            try:
                for first in left:
                    estimate(first)
            except BaseException as failure:
                failures.append(failure)

        # A batch to a thread: a small network scales better so than by threads inside it. This
        # thread works too: one that waits would have to be woken. Plain threads: executors refuse
        # work once the main thread has ended.
        helpers = min(self._engine.num_threads, len(firsts)) - 1
        others = [threading.Thread(target=work) for _ in range(helpers)]
        for other in others:
            other.start()
        work()
        for other in others:
            other.join()
        if failures:
            raise failures[0]
        self._check_finite(scale, orientation)
        return PoseHistograms(scale=scale, orientation=orientation)

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers really in use, most preferred first."""
        return self._engine.providers

    @property
    def batch(self) -> int:
        """Patches that keep all threads busy, or the GPU."""
        return self._engine.batch * self._engine.num_threads

    def _open(self) -> None:
        self.engine = _choose_engine(self._settings["engine"])
        self.path = model_path(self._model)
        content = _read_model(self.path)
        self.metadata: ModelMetadata = read_metadata(content, str(self.path))
        settings = self._settings
        try:
            if self.engine == "opencv":
                self._engine: _Engine = _OpenCVEngine(content, settings["providers"])
            else:
                self._engine = _RuntimeEngine(
                    content, settings["providers"], settings["num_threads"]
                )
            inputs = {"patches": np.zeros((1, *self.metadata.patch_shape), np.float32)}
            if self.metadata.takes_prior:
                inputs["log_prior"] = np.zeros((1, self.metadata.bins.scale), np.float32)
            outputs = self._engine.run(inputs)
        except Exception as error:  # the engines' own exceptions share no narrower base
            raise ModelError(
                f"{self.path}: expected a model with input patches (N, C, H, W), log_prior too if "
                f"its metadata says so, and outputs scale and orientation, got {error}; export it "
                "again"
            ) from error
        self._check_outputs(outputs)

    def _check_outputs(self, outputs: Sequence[NDArray[np.float32]]) -> None:
        bins = self.metadata.bins
        found = tuple(output.shape for output in outputs)
        expected = ((1, bins.scale), (1, bins.orientation))
        if found != expected:
            raise ModelError(
                f"{self.path}: expected outputs of shape {expected}, as its metadata says, got "
                f"{found}; export it again"
            )
        self._check_finite(*outputs)

    def _check_finite(self, *histograms: NDArray[np.float32]) -> None:
        if not all(np.isfinite(histogram).all() for histogram in histograms):
            raise ModelError(
                f"{self.path}: expected finite histograms, got NaN or infinite ones; if the "
                "patches are finite the file is damaged: export it again"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return what is needed to open the model again."""
        return {"_model": self._model, "_settings": self._settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the model again."""
        vars(self).update(state)
        self._open()


def model_path(model: str | Path) -> Path:
    """Find the file of a model.

    Args:
        model: A bundled model's name or the path of an ONNX file.

    Raises:
        ModelError: There is no such file.
        TypeError: Neither text nor a path.
    """
    if not isinstance(model, (str, Path)):
        raise TypeError(f"model: expected a name or a path, got {type(model).__name__}")
    path = _bundled_path(model) if model in BUNDLED_MODELS else Path(model)
    if not path.is_file():
        names = ", ".join(BUNDLED_MODELS)
        raise ModelError(
            f"{path}: expected a model bundled with this version ({names}) or the path of an ONNX "
            "file, got neither"
        )
    return path


def _bundled_path(name: str | Path) -> Path:
    from importlib import resources  # here: slow to import

    try:
        return Path(str(resources.files("cv_patchpose.models"))) / f"{name}.onnx"
    except ModuleNotFoundError as error:
        raise ModelError(f"{name}: expected the package's models, got none installed") from error


def _read_model(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: expected a readable ONNX file, got {error.strerror}") from error


def _check_providers(providers: Sequence[str] | None) -> tuple[str, ...]:
    if providers is None:
        return (_CPU_PROVIDER,)
    if not isinstance(providers, (list, tuple)) or not all(isinstance(p, str) for p in providers):
        raise TypeError(f"providers: expected a list or tuple of names, got {providers!r}")
    return tuple(providers)


def _check_threads(num_threads: int | None) -> int | None:
    if num_threads is None:
        return None
    whole = isinstance(num_threads, (int, np.integer)) and not isinstance(num_threads, bool)
    if not whole or num_threads < 1:
        raise ValueError(f"num_threads: expected at least 1 or None, got {num_threads!r}")
    return int(num_threads)


def _warn(message: str, *values: object) -> None:
    """Write a line to the log."""
    import logging  # which takes milliseconds that are seldom needed

    logging.getLogger(__name__).warning(message, *values)


def _warn_of_missing(providers: Sequence[str], available: Sequence[str]) -> None:
    for name in set(providers) - set(available):
        _warn("the execution provider %s is not available: going on without it", name)


def _choose_engine(engine: str | None) -> str:
    if engine is not None and engine not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(ENGINES)} or None, got {engine!r}")
    if engine == "opencv":
        return engine
    try:
        importlib.import_module("onnxruntime")
    except Exception as error:  # a broken installation may raise anything
        if engine is not None:
            raise ValueError(
                "engine: expected an onnxruntime that can be imported "
                f"(pip install 'cv-patchpose[cpu]'), got {error}"
            ) from error
        if getattr(error, "name", None) != "onnxruntime":  # installed, but broken
            _warn("running models on cv2.dnn, because onnxruntime fails: %s", error)
        return "opencv"
    return "onnxruntime"


class _RuntimeEngine:
    """ONNX Runtime."""

    def __init__(self, model: bytes, providers: tuple[str, ...], num_threads: int | None) -> None:
        import onnxruntime

        available = onnxruntime.get_available_providers()
        usable = [name for name in providers if name in available and name != _CPU_PROVIDER]
        _warn_of_missing(providers, available)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        chosen = [(name, _PROVIDER_OPTIONS.get(name, {})) for name in usable]
        self._session = onnxruntime.InferenceSession(
            model, options, providers=[*chosen, _CPU_PROVIDER]
        )
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self._on_gpu = not _GPU_PROVIDERS.isdisjoint(self.providers)
        self.batch = _GPU_BATCH if self._on_gpu else _BATCH
        self._num_threads = 1 if self._on_gpu else num_threads

    @property
    def num_threads(self) -> int:
        """Runs at once."""
        return self._num_threads or max(1, cv2.getNumThreads())

    def run(self, inputs: Mapping[str, NDArray[np.float32]]) -> Sequence[NDArray[np.float32]]:
        """Return the scale and the orientation histograms of a batch, from inputs by name."""
        if self._on_gpu:
            return self._run_bound(inputs)
        outputs: Sequence[NDArray[np.float32]] = self._session.run(list(_OUTPUTS), dict(inputs))
        return outputs

    def _run_bound(
        self, inputs: Mapping[str, NDArray[np.float32]]
    ) -> Sequence[NDArray[np.float32]]:
        """Let the session take inputs and give outputs where they lie, as `run` with binding."""
        binding = self._session.io_binding()
        for name, values in inputs.items():
            binding.bind_cpu_input(name, values)
        for name in _OUTPUTS:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        outputs: Sequence[NDArray[np.float32]] = binding.copy_outputs_to_cpu()
        return outputs


class _OpenCVEngine:
    """OpenCV's own network engine."""

    batch = _BATCH
    num_threads = 1  # of ours; it has OpenCV's

    def __init__(self, model: bytes, providers: tuple[str, ...]) -> None:
        _warn_of_missing(providers, [_CPU_PROVIDER])
        self._lock = threading.Lock()  # the network holds its input and its outputs
        self.providers: tuple[str, ...] = ("OpenCV",)
        content = np.frombuffer(model, np.uint8)
        if hasattr(cv2.dnn, "ENGINE_NEW"):  # OpenCV 5, whose engine refuses enableFusion
            self._net = cv2.dnn.readNetFromONNX(content, cv2.dnn.ENGINE_NEW)
        else:
            # With fused layers it answers wrongly once the batch size has changed.
            self._net = cv2.dnn.readNetFromONNX(content)
            self._net.enableFusion(False)

    def run(self, inputs: Mapping[str, NDArray[np.float32]]) -> Sequence[NDArray[np.float32]]:
        """Return the scale and the orientation histograms of a batch, from inputs by name."""
        with self._lock:
            for name, values in inputs.items():
                self._net.setInput(values, name)
            # All outputs at once: the new engine cannot compute one without the others.
            return tuple(np.array(o, np.float32) for o in self._net.forward(_OUTPUTS))
