"""Print the medians of what `make bench` measured as one short table for each benchmark."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KEYS = ("times", "times_warm_heap")
UNTOLD = ("benchmark", "environment", "providers", "engine")


def find_times(content: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[str, dict]]:
    """Yield every set of times in a report with the words that tell it from the others."""
    if isinstance(content, list):
        for each in content:
            yield from find_times(each, where)
    elif isinstance(content, dict):
        own = [
            value if isinstance(value, str) else f"{name.replace('_', ' ')}: {value:,}"
            for name, value in content.items()
            if isinstance(value, (str, int)) and name not in UNTOLD
        ]
        for name, value in content.items():
            if name in KEYS:
                heap = ("warm heap",) if name == "times_warm_heap" else ()
                yield ", ".join((*where, *own, *heap)), value
            elif name != "environment":
                yield from find_times(value, where + ((name,) if isinstance(value, dict) else ()))


def format_times(times: dict[str, dict]) -> str:
    """Lay out one set of times; ratios are to the first call, turn by turn."""
    width = max(map(len, times))
    lines = [f"  {'':{width}}  median, ms  ratio to first"]
    for name, time in times.items():
        lines.append(
            f"  {name:{width}}  {time['median_ms']:10,.2f}  {time['ratio_to_first']:14.3g}"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the tables of some files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="JSON files")
    for path in parser.parse_args().files:
        report = json.loads(path.read_text())
        for title, times in find_times(report):
            print(f"{report['benchmark']}: {title}\n{format_times(times)}\n")


if __name__ == "__main__":
    main()
