"""The pairs that a report shows: which methods, which pairs, and none that look alike."""

from __future__ import annotations

import numpy as np

from cv_patchpose.evaluation.examples import choose_methods, draw_examples
from cv_patchpose.evaluation.homography_matching import MatchingProtocol
from cv_patchpose.evaluation.page import render_page
from cv_patchpose.evaluation.report_folder import short_names
from cv_patchpose.evaluation.results import PairResult, TwoViewResult
from cv_patchpose.evaluation.samples import Sample, ShownPair
from cv_patchpose.matching import Matches


def test_the_first_method_that_is_not_ours_is_compared_with_the_first_that_is():
    assert choose_methods(["detector", "upright", "polar", "a.onnx:2"]) == ("detector", "polar")
    assert choose_methods(["polar", "orinet", "a.onnx:2"]) == ("orinet", "polar")
    assert choose_methods(["detector", "upright@describe", "peer.py"]) == ("detector", "peer.py")
    assert choose_methods(["polar", "detector"]) == ("detector", "polar")
    assert choose_methods(["polar", "polar:2"]) == ("polar", "polar:2")
    assert choose_methods(["detector"]) is None


def test_best_and_worst_pairs_are_those_that_gain_and_lose_most():
    gains = {"a": 5, "b": -7, "c": 0, "d": 9, "e": -1}
    samples = [
        Sample("s", pair, method, PairResult(20, 50, correct, [0.1] * 10))
        for pair, gain in gains.items()
        for method, correct in (("detector", 10), ("identity", 3), ("upright", 10 + gain))
    ]
    shown = []

    def show(unit, protocol):
        shown.append((unit, protocol.methods))
        nothing = Matches((0, 0), *np.zeros((2, 0, 2), np.float32), np.zeros(0, bool))
        image = np.full((40, 60, 3), 20 * "acdbe".index(unit), np.uint8)
        return ShownPair(image, image, dict.fromkeys(protocol.methods, nothing))

    protocol = MatchingProtocol(methods=("detector", "identity", "upright"))
    units = {("s", pair): pair for pair in gains}
    names = short_names(protocol.methods)
    examples = draw_examples(samples, units, show, protocol, names)
    assert [unit for unit, _ in shown] == ["d", "a", "b", "e"]
    assert {methods for _, methods in shown} == {("detector", "upright")}
    assert [len(examples.best), len(examples.worst)] == [2, 2]
    assert examples.best[0].caption.startswith("s, pair d: detector has 10 distinct correct")
    assert "upright has 19" in examples.best[0].caption
    assert "detector, the first method that is not ours" in examples.rule
    one = draw_examples(samples[:3], units, show, protocol, names)
    assert [len(one.best), len(one.worst)] == [1, 0]


def draw_gains(results, methods, image_of=lambda pair: np.zeros((40, 60, 3), np.uint8)):
    """Draw examples of pairs, each with the results of two methods."""
    samples = [
        Sample("s", pair, method, result)
        for pair, both in results.items()
        for method, result in zip(methods, both, strict=True)
    ]
    nothing = Matches((0, 0), *np.zeros((2, 0, 2), np.float32), np.zeros(0, bool))

    def show(unit, protocol):
        image = image_of(unit)
        return ShownPair(image, image, dict.fromkeys(protocol.methods, nothing))

    units = {("s", pair): pair for pair in results}
    protocol = MatchingProtocol(methods=methods)
    return draw_examples(samples, units, show, protocol, short_names(methods))


def test_the_same_picture_is_shown_once():
    methods = ("detector", "upright")
    results = {
        pair: [
            PairResult(20, 50, correct, [0.1] * 10)
            for m, correct in zip(methods, (9, to), strict=True)
        ]
        for pair, to in zip("abcd", (12, 11, 3, 2), strict=True)
    }
    examples = draw_gains(
        results, methods, lambda pair: np.full((40, 60, 3), 40 * (pair in "ab"), np.uint8)
    )
    assert [len(examples.best), len(examples.worst)] == [1, 1]


def test_pairs_that_look_alike_are_no_examples():
    methods = ("polar", "orinet")

    def pair(polar_deg, orinet_deg):
        errors = zip(methods, (polar_deg, orinet_deg), strict=True)
        return [TwoViewResult("easy", (error,), 9, 5) for name, error in errors]

    alike = {"a": pair(0.11, 0.14), "b": pair(0.5, 0.46), "c": pair(40.0, 50.0)}
    examples = draw_gains(alike, methods)
    assert (examples.best, examples.worst) == ((), ())
    content = {"benchmark": "b", "protocol": {"root": ""}, "rows": [{"method": "polar"}]}
    content |= {"failures": {}, "environment": {}}
    assert "None is left" in render_page(content, {"polar": "polar"}, [], examples, (0, 1))
    examples = draw_gains(alike | {"d": pair(0.1, 7.0)}, methods)
    assert [each.caption for each in examples.best] == [
        "s, pair d: orinet is 7.0 degrees off; polar is 0.1 degrees off."
    ]
    assert examples.worst == ()
