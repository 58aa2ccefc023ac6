"""The methods by name."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cv_patchpose.assigner import PatchPoseAssigner
from cv_patchpose.estimator import BUNDLED_MODELS, model_path
from cv_patchpose.evaluation.controls import (
    AffineShape,
    AngleEstimator,
    AngleOnly,
    OwnPose,
    SiftAtPoint,
    Upright,
)
from cv_patchpose.evaluation.interface import Method, MethodSettings, Route
from cv_patchpose.evaluation.learned import Learned
from cv_patchpose.evaluation.peers import AffNet, OriNet
from cv_patchpose.evaluation.sift_rules import SIFT_MAGNIFICATION, dominant_gradient_deg

CONTROLS = (
    "identity",
    "upright",
    "detector",
    "detector-all",
    "gradient-histogram",
    "sift-at-point",
    "orinet",
    "affnet",
    "orinet+affnet",
)
METHODS_HELP = (
    f"without a model of ours: {', '.join(CONTROLS)}",
    f"learned: {', '.join(BUNDLED_MODELS)}, or a path to an ONNX file; behind it :K for the K best "
    "poses, @angle or @scale to write only that, @naive to leave octave and class_id as detected, "
    "@Npasses to read poses N times",
    "behind any of these: @describe for rectified patches",
    "your own: a path to a Python file with a function load_method(settings)",
)
_PEERS = ("orinet", "affnet", "orinet+affnet")
# Windows of OriNet and AffNet in characteristic sizes: what kornia's frames of 6 sizes span.
PEER_MAGNIFICATION = 12.0
_ROUTES: dict[str | None, Route] = {"@naive": "naive", "@describe": "patches"}
_LEARNED_SPEC = re.compile(
    r"(?P<model>.+?)(:(?P<top_k>\d+))?"
    r"(?P<how>@angle|@scale|@naive|@describe|@(?P<passes>\d+)passes)?"
)


def load_method(spec: str, settings: MethodSettings) -> Method:
    """Make a method from its name.

    Args:
        spec: One of :data:`CONTROLS`, or one of the bundled models or a path to an ONNX file,
            followed by ``:K`` for the K best poses and by ``@angle`` or ``@scale`` to write only
            that, or ``@naive`` to leave all fields but these two as the detector wrote them, or
            ``@Npasses`` to read poses N times. Any may be followed by ``@describe`` instead, to
            describe rectified patches. Or a path to a Python file that has a function
            ``load_method(settings)``.
        settings: What the benchmark asks for.

    Raises:
        ValueError: Unknown name; lists the accepted ones.
    """
    if spec.endswith(".py"):
        return _load_file(Path(spec), settings)
    window_px, weights = settings.window_px, settings.peer_weights
    name = spec.removesuffix("@describe")
    route: Route = "fields" if name == spec else "patches"

    def angle_only(estimator: AngleEstimator, magnification: float) -> Method:
        return AngleOnly(estimator, magnification, window_px, route)

    def affine_shape(orient: bool) -> Method:
        return AffineShape(AffNet(weights, orient=orient), PEER_MAGNIFICATION, window_px, route)

    controls: dict[str, Callable[[], Method]] = {
        "identity": lambda: Upright(predicts_size=False, route=route),
        "upright": lambda: Upright(route=route),
        "detector": lambda: OwnPose(window_px=window_px, route=route),
        "detector-all": lambda: OwnPose(every_orientation=True, window_px=window_px, route=route),
        "gradient-histogram": lambda: angle_only(dominant_gradient_deg, SIFT_MAGNIFICATION),
        "sift-at-point": lambda: SiftAtPoint(PEER_MAGNIFICATION, window_px, route),
        "orinet": lambda: angle_only(OriNet(weights), PEER_MAGNIFICATION),
        "affnet": lambda: affine_shape(orient=False),
        "orinet+affnet": lambda: affine_shape(orient=True),
    }
    return controls[name]() if name in controls else _load_learned(spec, settings)


def _load_file(path: Path, settings: MethodSettings) -> Method:
    """Make the method that a Python file of the user's defines."""
    if not path.is_file():
        raise ValueError(f"methods: expected a Python file, got {str(path)!r}")
    try:
        load = runpy.run_path(str(path)).get("load_method")
    except Exception as error:  # anyone's code
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"methods: expected Python that runs in {path}, got {what}") from error
    if not callable(load):
        raise ValueError(f"methods: expected a function load_method(settings) in {path}, got none")
    try:
        method: Method = load(settings)
    except (ValueError, OSError, ImportError):  # say themselves what they expected
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"methods: expected load_method(settings) in {path} to return a method, got {what}"
        ) from error
    absent = [name for name in ("route", "pose", "estimate") if not hasattr(method, name)]
    if absent:
        raise ValueError(
            f"methods: expected load_method(settings) in {path} to return a method, such as "
            f"controls.AngleOnly makes of a function, got {method!r} without {', '.join(absent)}"
        )
    return method


def is_learned(spec: str) -> bool:
    """Whether a name is that of a network of this package."""
    return not spec.endswith(".py") and spec.removesuffix("@describe") not in CONTROLS


def identify_method(spec: str, weights: Sequence[Path]) -> tuple[str, tuple[Path, ...]]:
    """Name a method apart from what its files are called.

    Args:
        spec: See :func:`load_method`.
        weights: Files of published networks.

    Returns:
        The name, or what is left of it without a file's, and the files whose content decides what
        the method does.
    """
    if spec.endswith(".py"):
        return "", (Path(spec), *weights)
    if not is_learned(spec):
        return spec, tuple(weights) if spec.removesuffix("@describe") in _PEERS else ()
    match = _LEARNED_SPEC.fullmatch(spec)
    model = match["model"] if match else spec
    bundled = model in BUNDLED_MODELS
    return spec.removeprefix(model), (model_path(model) if bundled else Path(model),)


def require_one_pose(specs: Sequence[str]) -> None:
    """Refuse methods that give several poses per point.

    Raises:
        ValueError: Names the first of them.
    """
    for spec in specs:
        match = _LEARNED_SPEC.fullmatch(spec)
        if spec.startswith("detector-all") or (match and match["top_k"] not in (None, "1")):
            raise ValueError(f"methods: expected one pose per point, got {spec!r}")


def _load_learned(spec: str, settings: MethodSettings) -> Learned:
    match = _LEARNED_SPEC.fullmatch(spec)
    if match and match["model"].removesuffix("@describe") in CONTROLS:
        raise ValueError(
            f"methods: expected {match['model']} as it is or with @describe behind it, got "
            f"{spec!r}; only learned methods take :K, @angle, @scale, @naive and @Npasses"
        )
    if match is None or not (match["model"] in BUNDLED_MODELS or match["model"].endswith(".onnx")):
        accepted = "\n".join(METHODS_HELP)
        raise ValueError(f"methods: expected one of these, got {spec!r}\n{accepted}")
    if match["top_k"] and not int(match["top_k"]):
        raise ValueError(f"methods: expected at least 1 behind the colon, got {spec!r}")
    if match["model"] not in BUNDLED_MODELS and not Path(match["model"]).is_file():
        raise ValueError(f"methods: expected an ONNX file, got {match['model']!r}")
    options: dict[str, Any] = {
        "top_k": int(match["top_k"] or 1),
        "assign_scale": match["how"] != "@angle",
        "assign_orientation": match["how"] != "@scale",
        "window_px": settings.window_px,
        "scale_prior_octaves": settings.scale_prior_octaves,
        "passes": "auto" if match["passes"] is None else int(match["passes"]),
    }
    return Learned(
        PatchPoseAssigner(match["model"], **options), _ROUTES.get(match["how"], "fields")
    )
