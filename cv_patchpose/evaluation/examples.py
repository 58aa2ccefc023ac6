"""Pictures of the pairs on which two methods differ most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2

from cv_patchpose.drawing import draw_matches_before_after
from cv_patchpose.evaluation.methods import is_learned
from cv_patchpose.evaluation.samples import RankedResult, Sample, ShownPair

_SHOWN = 2  # best pairs, and as many worst ones
_JPEG_QUALITY = 85

ShowPair = Callable[[Any, Any], ShownPair]


@dataclass(frozen=True)
class Example:
    """A pair before and after.

    Attributes:
        caption: Its name and what was measured.
        jpeg: The picture.
    """

    caption: str
    jpeg: bytes


@dataclass(frozen=True)
class Examples:
    """Pairs and how they were chosen.

    Attributes:
        rule: In words.
        best: Most gained, the best first.
        worst: Least gained or most lost, the worst first.
    """

    rule: str
    best: tuple[Example, ...]
    worst: tuple[Example, ...]


def choose_methods(methods: Sequence[str]) -> tuple[str, str] | None:
    """Choose what is compared: the first method that is not ours and the first that is.

    Returns:
        The two, with the first or the last method for what there is none of; None where there is
        only one.
    """
    if len(methods) < 2:
        return None
    before = next((name for name in methods if not is_learned(name)), methods[0])
    others = [name for name in methods if name != before]
    return before, next(filter(is_learned, others), others[-1])


def draw_examples(
    samples: Sequence[Sample[Any]],
    units: Mapping[tuple[str, str], Any],
    show: ShowPair,
    protocol: Any,
    names: Mapping[str, str],
) -> Examples | None:
    """Draw the pairs on which the second of two methods gains and loses most.

    Args:
        samples: Ranked results.
        units: The pairs, by the names of sequence and pair.
        show: Makes a pair ready to be drawn, under a protocol.
        protocol: Of the samples.
        names: What each method is called.

    Returns:
        The pictures, or None where there is nothing to compare.
    """
    methods = choose_methods(protocol.methods)
    pairs = _results_by_pair(samples, methods) if methods else {}
    if methods is None or not pairs:
        return None
    before, after = (names[method] for method in methods)
    merit = next(iter(pairs.values()))[0].MERIT
    rule = (
        f"Before: {before}, the first method that is not ours, or else the first. After: {after}, "
        "the first that is, or else the last. Pairs are ranked by how much the second is ahead in "
        f"{merit}; those on which both are alike to the digits shown are left out."
    )
    gains = {pair: _gain(*results) for pair, results in pairs.items() if _differ(*results)}
    ranked = sorted(gains, key=gains.__getitem__)
    count = min(_SHOWN, max(len(ranked) // 2, 1))
    best = [pair for pair in ranked[::-1] if gains[pair] > 0][:count]
    worst = [pair for pair in ranked if pair not in best][:count]

    def draw(pair: tuple[str, str]) -> Example:
        shown = show(units[pair], replace(protocol, methods=methods))
        return _draw(pair, shown, methods, pairs[pair], names)

    drawn = {pair: draw(pair) for pair in (*best, *worst)}
    first = {drawn[pair].jpeg: pair for pair in reversed(drawn)}  # data sets share photographs
    best, worst = ([p for p in group if first[drawn[p].jpeg] == p] for group in (best, worst))
    return Examples(rule, tuple(map(drawn.__getitem__, best)), tuple(map(drawn.__getitem__, worst)))


def _gain(before: RankedResult, after: RankedResult) -> float:
    return after.merit - before.merit


def _differ(before: RankedResult, after: RankedResult) -> bool:
    """Whether a reader of the caption would see which is ahead."""
    return before.summary != after.summary and bool(_gain(before, after))


def _results_by_pair(
    samples: Sequence[Sample[Any]], methods: tuple[str, str]
) -> dict[tuple[str, str], tuple[RankedResult, RankedResult]]:
    results: dict[str, dict[tuple[str, str], RankedResult]] = {method: {} for method in methods}
    for sample in samples:
        if sample.method in results:
            results[sample.method][sample.sequence, sample.pair] = sample.result
    before, after = results.values()
    return {pair: (before[pair], after[pair]) for pair in before if pair in after}


def _draw(
    pair: tuple[str, str],
    shown: ShownPair,
    methods: tuple[str, str],
    results: tuple[RankedResult, RankedResult],
    names: Mapping[str, str],
) -> Example:
    before, after = (shown.matches[method] for method in methods)
    # OpenCV's fonts have ASCII only.
    titles = [names[method].encode("ascii", "replace").decode() for method in methods]
    picture = draw_matches_before_after(
        shown.image1,
        shown.image2,
        before,
        after,
        titles=(f"Before: {titles[0]}", f"After: {titles[1]}"),
        counted=shown.counted,
    )
    _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    said = (f"{names[m]} {result.summary}" for m, result in zip(methods, results, strict=True))
    return Example(f"{pair[0]}, pair {pair[1]}: {'; '.join(said)}.", jpeg.tobytes())
