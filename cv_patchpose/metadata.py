"""What an ONNX model says about itself: sampling grid, bins, normalisation and calibration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from cv_patchpose.errors import ModelError
from cv_patchpose.histograms import PoseBins
from cv_patchpose.patches import PolarGrid, SquareGrid

METADATA_KEY = "patchpose"
METADATA_FORMAT = 1

_METADATA_PROPS = 14  # field number in ONNX's ModelProto
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5  # wire types of protocol buffers


@dataclass(frozen=True)
class ModelMetadata:
    """Everything the run time needs to know about a model, beside its weights.

    Attributes:
        name: Of the model.
        grid: Where patches are sampled.
        bins: Of the two output histograms.
        color: Patches have three channels instead of one; square grids only.
        standardize: Patches are normalised to zero mean and unit variance by the sampler; polar
            grids only.
        takes_prior: The model reads what is known of the scale from a second input, "log_prior".
        magnification: Diameter of the support window in units of the keypoint's size.
        point_window_px: Diameter of the support window, at scale 1, of points that have no scale
            of their own.
        scale_offset_octaves: Calibration, added to log2 of every measured scale.
        scale_prior_octaves: Standard deviation of the Gaussian prior on log2(scale) for keypoints
            whose detector measured their scale; None: no prior.
        second_mode_ratio: Poses whose score is below this share of the best are left out.
        training: Free notes on data, recipe and commit.

    Raises:
        ValueError: A number that is not finite or out of range; square patches to standardize.
    """

    name: str
    grid: PolarGrid | SquareGrid
    bins: PoseBins
    color: bool = False
    standardize: bool = False
    takes_prior: bool = False
    magnification: float = 12.0
    point_window_px: float = 64.0
    scale_offset_octaves: float = 0.0
    scale_prior_octaves: float | None = None
    second_mode_ratio: float = 0.25
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the numbers, and that the sampler can do what is asked."""
        if self.standardize and isinstance(self.grid, SquareGrid):
            raise ValueError("standardize: expected False with a square grid, got True")
        for name in ("magnification", "point_window_px"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected above 0, got {getattr(self, name)!r}")
        if not abs(self.scale_offset_octaves) < 100.0:
            raise ValueError(
                f"scale_offset_octaves: expected a finite number, got {self.scale_offset_octaves!r}"
            )
        if self.scale_prior_octaves is not None and not 0.0 <= self.scale_prior_octaves:
            raise ValueError(
                f"scale_prior_octaves: expected at least 0, got {self.scale_prior_octaves!r}"
            )
        if not 0.0 <= self.second_mode_ratio <= 1.0:
            raise ValueError(
                f"second_mode_ratio: expected within [0, 1], got {self.second_mode_ratio!r}"
            )

    @property
    def patch_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the patches the model takes."""
        if isinstance(self.grid, PolarGrid):
            return 1, self.grid.rows, self.grid.columns + 2 * self.grid.halo
        return (3 if self.color else 1), self.grid.size, self.grid.size

    def to_json(self) -> str:
        """Write the value of the ONNX file's "patchpose" metadata property."""
        import json  # here and below: importing the package needs none of it

        polar = isinstance(self.grid, PolarGrid)
        grid = {"kind": "polar" if polar else "square", **asdict(self.grid)}
        if not polar:
            grid["color"] = self.color
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "color"}
        plain |= {"grid": grid, "bins": asdict(self.bins), "training": dict(self.training)}
        return json.dumps({"format": METADATA_FORMAT, **plain})

    @classmethod
    def from_json(cls, text: str) -> ModelMetadata:
        """Read what `to_json` wrote.

        Raises:
            ValueError: Not a JSON object of the known format with the known entries.
        """
        import json

        document = json.loads(text)
        if not isinstance(document, dict) or document.get("format") != METADATA_FORMAT:
            found = document.get("format") if isinstance(document, dict) else type(document)
            raise ValueError(f"format: expected {METADATA_FORMAT}, got {found!r}")
        entries = {name: value for name, value in document.items() if name != "format"}
        _check_names("entries", entries, {f.name for f in fields(cls)} - {"color"})
        try:
            grid, color = _grid_from_entry(dict(entries.pop("grid")))
            bins = dict(entries.pop("bins"))
            _check_names("bins", bins, {f.name for f in fields(PoseBins)})
            return cls(grid=grid, bins=PoseBins(**bins), color=color, **_typed(entries))
        except TypeError as error:
            raise ValueError(f"entries: {error}") from error


def read_metadata(model: bytes, path: str) -> ModelMetadata:
    """Read the metadata of an ONNX file.

    Args:
        model: Content of the file.
        path: Of the file, for messages.

    Raises:
        ModelError: Not an ONNX file, no metadata of ours, or metadata that cannot be used.
    """
    expected = f'an ONNX model with "{METADATA_KEY}" metadata, format {METADATA_FORMAT}'
    try:
        properties = dict(_metadata_properties(model))
    except (ValueError, IndexError) as error:
        raise ModelError(f"{path}: expected {expected}, got no ONNX file ({error})") from error
    if METADATA_KEY not in properties:
        found = ", ".join(sorted(properties)) or "none"
        raise ModelError(f"{path}: expected {expected}, got metadata properties: {found}")
    try:
        return ModelMetadata.from_json(properties[METADATA_KEY])
    except ValueError as error:
        raise ModelError(f"{path}: expected {expected}, got {error}") from error


def _grid_from_entry(entry: dict[str, Any]) -> tuple[PolarGrid | SquareGrid, bool]:
    kind = entry.pop("kind", None)
    if kind == "polar":
        _check_names("grid", entry, {f.name for f in fields(PolarGrid)})
        return PolarGrid(**entry), False
    if kind == "square":
        _check_names("grid", entry, {"size", "color"})
        return SquareGrid(size=entry["size"]), bool(entry["color"])
    raise ValueError(f"grid kind: expected 'polar' or 'square', got {kind!r}")


def _check_names(what: str, entries: Mapping[str, Any], expected: set[str]) -> None:
    if set(entries) != expected:
        difference = ", ".join(sorted(set(entries) ^ expected))
        raise ValueError(f"{what}: expected {sorted(expected)}, missing or foreign {difference}")


def _typed(entries: dict[str, Any]) -> dict[str, Any]:
    """Check the JSON types of the plain entries."""
    numbers = {
        "magnification",
        "point_window_px",
        "scale_offset_octaves",
        "scale_prior_octaves",
        "second_mode_ratio",
    }
    kinds: dict[str, Any] = {
        "name": str,
        "standardize": bool,
        "takes_prior": bool,
        "training": dict,
    }
    for name, value in entries.items():
        if name in numbers:
            optional = name == "scale_prior_octaves" and value is None
            right = optional or (isinstance(value, (int, float)) and not isinstance(value, bool))
        else:
            right = isinstance(value, kinds[name])
        if not right:
            raise ValueError(f"{name}: got {value!r}")
    return entries


def _metadata_properties(model: bytes) -> Iterator[tuple[str, str]]:
    """Yield the key and value of every metadata property of a ModelProto."""
    for number, value in _protobuf_fields(memoryview(model)):
        if number == _METADATA_PROPS and isinstance(value, memoryview):
            entry = {key: item for key, item in _protobuf_fields(value)}
            key, item = entry.get(1, b""), entry.get(2, b"")
            if isinstance(key, int) or isinstance(item, int):
                raise ValueError("a metadata property that is not text")
            yield bytes(key).decode(), bytes(item).decode()


def _protobuf_fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield the number and value of the fields of one message, not of those nested in it."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        wire_type = tag & 7
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        length = {_FIXED_64: 8, _FIXED_32: 4}.get(wire_type, 0)
        if wire_type == _BYTES:
            length, position = _varint(message, position)
        elif not length:
            raise ValueError(f"wire type {wire_type} at byte {position}")
        if position + length > len(message):
            raise ValueError(f"the file ends within a field at byte {position}")
        yield tag >> 3, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Read a variable-length integer; return it and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"an integer without end at byte {position}")
