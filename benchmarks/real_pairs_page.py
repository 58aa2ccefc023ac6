"""Writes docs/benchmarks.md of what real_pairs.py measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from real_pairs_tables import DRAWN, JUDGED, MATCHING, OURS, SUMMARY, Table, tables

Measured = Mapping[tuple[int, bool], dict]

STRECHA = {"castle-P19": 54, "fountain-P11": 41}  # pairs whose axes are at most 60 degrees apart
KINDS = {
    "mma": "Share of each method's matches within 1 to 10 pixels of the truth",
    "cost": "{what} of each method against the time for the poses of an image",
    "difficulty": "mAA(10) of each method on easy, medium and hard pairs",
}


def format_table(rows: Sequence[dict], columns: dict[str, tuple[str, str]]) -> list[str]:
    """Show rows of a result, the best of each column, as shown, in bold."""
    lines = ["| pose | " + " | ".join(title for title, _ in columns.values()) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    ranked = [name for name in columns if name not in ("pose_ms", "gain")]
    best = {name: max(shown(row[name] or 0, columns[name][1]) for row in rows) for name in ranked}
    for row in rows:
        cells = []
        for name, (_, form) in columns.items():
            value = row.get(name)
            text = "-" if value is None else format(value, form)
            is_best = value is not None and best.get(name) and shown(value, form) == best[name]
            cells.append(f"**{text}**" if is_best else text)
        lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    return [*lines, ""]


def shown(value: float, form: str) -> float:
    """Round a number as it is shown: what looks the same counts as the same."""
    return float(format(value, form))


def verdict(rows: Sequence[dict], columns: dict[str, tuple[str, str]]) -> str:
    """Say how the one judged method stands beside those that are not ours."""
    own = next((row for row in rows if row["method"] == JUDGED), None)
    others = [row for row in rows if row["method"] not in OURS]
    if own is None or not others:
        return ""
    if "maa_10" in columns:
        return judge_gains(own, others)
    ahead, level, behind = [], [], []
    for name, title in (("mma_3", "MMA@3"), ("correct_matches", "correct matches")):
        form = columns[name][1]
        best = shown(own[name], form)
        better = [row for row in others if shown(row[name], form) > best]
        equal = [row["method"] for row in others if shown(row[name], form) == best]
        if better:
            figures = ", ".join(f"{row['method']} {row[name]:{form}}" for row in better)
            behind.append(f"{title} {own[name]:{form}} against {figures}")
        elif not equal:
            ahead.append(title)
        if equal:
            level.append(f"{title} with {', '.join(equal)}")
    parts = [f"is ahead of all in {' and '.join(ahead)}"] if ahead else []
    parts += [f"is level in {'; '.join(level)}"] if level else []
    parts += [f"is behind: {'; '.join(behind)}"] if behind else []
    return f"`{JUDGED}` {'; it '.join(parts)}.\n"


def judge_gains(own: dict, others: Sequence[dict]) -> str:
    """Sort the others by whether their mAA(10) differs by more than its standard error."""
    groups: dict[str, list[str]] = {"ahead": [], "same": [], "behind": []}
    for row in others:
        gain, error = (shown(row[f"maa_10_{name}"], ".3f") for name in ("gain", "gain_error"))
        group = "same" if abs(gain) <= error else "ahead" if gain > 0 else "behind"
        figure = f"{gain:+.3f}" if group == "same" else f"{abs(gain):.3f}"
        groups[group].append(f"{row['method']} ({figure} ± {error:.3f})")
    said = {
        "ahead": f"`{JUDGED}` is behind",
        "same": "no difference beyond the standard error:",
        "behind": f"`{JUDGED}` is ahead of",
    }
    parts = [f"{said[name]} {', '.join(group)}" for name, group in groups.items() if group]
    return f"mAA(10), {own['maa_10']:.3f}: {'; '.join(parts)}.\n"


def format_summary(measured: Measured) -> list[str]:
    """Show one number of the main tables for each method."""
    summary = [each for each in SUMMARY if each[1:3] in measured]
    forms = {"maa_10": ".3f"}
    # The names of columns are those of their figures, numbered, for bold to know the times.
    keys = [name if name == "pose_ms" else f"{name} {i}" for i, (*_, name) in enumerate(summary)]
    columns = {
        key: (title, forms.get(name, ".0f"))
        for key, (title, _, _, name) in zip(keys, summary, strict=True)
    }
    found = [
        {row["method"]: row[name] for row in measured[number, rotated]["rows"]}
        for _, number, rotated, name in summary
    ]
    rows = [
        {"method": method} | {key: each.get(method) for key, each in zip(keys, found, strict=True)}
        for method in dict.fromkeys(method for each in found for method in each)
    ]
    return format_table(rows, columns)


def format_page(measured: Measured, minutes: float, memory: Mapping[str, str]) -> str:
    """Write the page of all tables.

    Args:
        measured: results by the table's number and whether image 2 is rotated.
        minutes: that all of it took.
        memory: variables of the environment it was measured with.
    """
    first = next(iter(measured.values()))
    environment = first["environment"]
    return "\n".join(
        [
            "# Comparison on real pairs\n",
            describe_pairs(measured),
            describe_methods(measured),
            describe_figures(),
            describe_times(environment, memory),
            *format_summary(measured),
            *format_tables(measured),
            f"{environment['cpu']}; OpenCV {environment['opencv']}, kornia "
            f"{environment.get('kornia')}; {name_commits(measured)}; all of it took "
            f"{minutes:.0f} minutes.\n",
        ]
    )


def describe_pairs(measured: Measured) -> str:
    """Say what is compared on what."""
    planar, two_view = (
        next((r["rows"][0] for (n, _), r in measured.items() if tables()[n].planar is kind), {})
        for kind in (True, False)
    )
    kinds = ", ".join(f"{two_view.get(f'pairs_{k}')} {k}" for k in ("easy", "medium", "hard"))
    scenes = " and ".join(f"{name} ({pairs})" for name, pairs in STRECHA.items())
    return (
        "Made by `benchmarks/real_pairs.py PAIRS SCENES WEIGHTS`, which calls the commands shown; "
        "all numbers are in [results](results/real-pairs). PAIRS, planar scenes: five of HPatches, "
        f"four of Oxford, six of homogr, {planar.get('pairs')} pairs, at most 1,000 keypoints of "
        f"an image. SCENES, two views: {scenes} of Strecha, {two_view.get('pairs')} pairs: "
        f"{kinds}; after the matcher a robust essential matrix. Rotated: image 2 by 60 degrees "
        "(planar) or by an angle drawn for each image (two views). Numbers of keypoints are "
        "limits, the same for all methods, and the strongest are kept: where a place has two "
        "poses, fewer places fit in. Which training runs make up the bundled models was "
        "judged by these pairs, so that a little of what ours is ahead by may be chance.\n"
    )


def describe_methods(measured: Measured) -> str:
    """Say what the rows are."""
    present = {row["method"] for result in measured.values() for row in result["rows"]}
    angle = ", `polar@angle` with the detector's size" if "polar@angle" in present else ""
    return (
        "`detector` is the detector's own pose with one orientation: the first in OpenCV's list, "
        "which is the smallest angle, not the strongest; `detector-all` is all of them, SIFT as it "
        "is mostly used. Key.Net measures no angle: there `detector` is SIFT's gradient rule. "
        "`upright` and `affnet` know that the photographs are upright, the latter adds AffNet's "
        "affine shape, which patch descriptors (HardTFeat) see and SIFT does not. `polar` is ours, "
        f"`polar:2` with up to two poses{angle}, `polar-large` the larger model; `resnet18` is the "
        "paper's network, trained here, and counts as a baseline. Below each table `polar` is "
        "compared with every baseline.\n"
    )


def describe_figures() -> str:
    """Say what the columns are."""
    return (
        "The best of a column is bold. MMA@t and correct: as in the "
        "[README](../README.md#measured). mAA(t): the share of pairs whose pose is right within 1, "
        "2, ... t degrees, mean of these; easy, medium and hard by the angle between the optical "
        "axes (from 15, from 30 degrees). In two views each method's mAA(10) is compared with that "
        "of `polar` pair by pair. The standard error takes pairs for independent; they share "
        "images, so it is too small, and a difference that is not well above it may turn round "
        "with other pairs.\n"
    )


def describe_times(environment: dict, memory: Mapping[str, str]) -> str:
    """Say how the times were measured."""
    jobs, threads = environment["jobs"], environment["threads"]
    settings = " ".join(f"{name}={value}" for name, value in memory.items())
    return (
        "Pose, ms: median time for the poses of an image, without detection, in which SIFT finds "
        f"orientations of its own; {jobs} processes at once, {threads} "
        f"thread{'s' * (threads > 1)} each, with `{settings}` in the environment: memory that is "
        "given back and touched anew for every batch of patches costs the baselines a quarter of "
        "their time.\n"
    )


def name_commits(measured: Measured) -> str:
    """Name every commit that tables were measured at."""
    commits: dict[str, list[str]] = {}
    for (number, _), result in measured.items():
        kind = "planar" if tables()[number].planar else "two views"
        kinds = commits.setdefault(str(result["environment"]["commit"]), [])
        kinds += [] if kind in kinds else [kind]
    told = ", ".join(f"{commit} ({', '.join(kinds)})" for commit, kinds in commits.items())
    return f"commit{'s' * (len(commits) > 1)} {told}"


def format_tables(measured: Measured) -> list[str]:
    """Show every table that was measured, with its command and how ours stands."""
    parts = []
    for (number, rotated), result in measured.items():
        table = tables()[number]
        methods = [row["method"] for row in result["rows"]]
        root = "PAIRS" if table.planar else "SCENES"
        words = table.words(rotated, root, methods, "WEIGHTS", result["environment"]["jobs"])
        command = " ".join(["cv-patchpose", *words, "-o", "result.json"])
        parts += [f"## {table.heading(rotated)}\n", f"```sh\n{command}\n```\n"]
        parts += format_table(result["rows"], table.columns)
        parts.append(verdict(result["rows"], table.columns))
        if (number, rotated) in DRAWN:
            parts += [
                f"![{alt}]({name})\n" for name, alt in describe_pictures(table, rotated).items()
            ]
    return parts


def describe_pictures(table: Table, rotated: bool) -> dict[str, str]:
    """Tell what a table's pictures show, by their names beside the page."""
    matching = table.columns is MATCHING
    kinds = ("mma", "cost") if matching else ("cost", "difficulty")
    what = "MMA@3" if matching else "mAA(10)"
    return {
        f"real-pairs/{table.name(rotated)}-{kind}.png": (
            f"{KINDS[kind].format(what=what)}. {table.heading(rotated)}."
        )
        for kind in kinds
    }
