"""What each piece of the method is worth: one of them changed at a time, judged as in `bench.quality`.

    python -m bench.ablation --loras guitar octopus rocket cactus --results bench/results/ablation.json

Cells that the results file already has are not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.judge import DEMO, Judge
from bench.quality import BACKGROUNDS, demo_request, judge_deltas, table
from lib_loraclr.doors.cli.console import ConsoleProgress
from lib_loraclr.hosts.diffusers import load
from lib_loraclr.merge import merge_loras
from lib_loraclr.request import MergeRequest


def _options(**changes: object) -> Callable[[MergeRequest], MergeRequest]:
    return lambda request: replace(request, options={**request.options, **changes})


def _recording(**changes: int) -> Callable[[MergeRequest], MergeRequest]:
    return lambda request: replace(request, recording=replace(request.recording, **changes))


#: name of a change -> what it makes of the request
CHANGES: dict[str, Callable[[MergeRequest], MergeRequest]] = {
    "as it is": lambda request: request,
    "no scenes": _options(scenes=0, batch_size=12),
    "no contrast": _options(contrast=0),
    "contrast 2": _options(contrast=2),
    "no bank of phrases": lambda request: replace(request, prompts=replace(request.prompts, bank="none")),
    "half the paths, renoised points": _recording(paths=16, renoised=128),
    "no hinge in the layers": _options(negative=0),
    "no pull to the start": _options(lambda_delta=0),
    "learning rate halved": _options(learning_rate=0.0035),
    "learning rate doubled": _options(learning_rate=0.014),
    "rank 32": lambda request: replace(request, rank="32"),
    "twice the steps": lambda request: _options(steps=2 * _steps(request))(request),
}


def _steps(request: MergeRequest) -> int:
    """How many a request would make."""
    from lib_loraclr.solving import Procedure

    return Procedure.of(request).refinement(len(request.concepts)).steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loras", nargs="*", default=["guitar", "octopus", "rocket", "cactus"], metavar="NAME")
    parser.add_argument("--changes", nargs="*", default=list(CHANGES), help="default: all")
    parser.add_argument("--prompts", choices=("demo", "default"), default="default")
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--triples", type=int, default=24)
    parser.add_argument(
        "--backgrounds", nargs="+", default=BACKGROUNDS, metavar="COLOUR", help="of the judged pictures"
    )
    parser.add_argument("--results", type=Path, default=None, help="JSON file to keep cells in")
    arguments = parser.parse_args()
    host, judge, progress = load(DEMO / "emoji-sd1.safetensors"), Judge(), ConsoleProgress()
    request, sprites = demo_request(arguments.loras, arguments.prompts)
    results = (
        json.loads(arguments.results.read_text("utf-8")) if arguments.results and arguments.results.is_file() else {}
    )
    for name in arguments.changes:
        if name not in results:
            merge = merge_loras(CHANGES[name](request), host, progress)
            progress.close()
            figures = {"retention": [concept.merged for concept in merge.report.concepts]}
            figures |= {"base_drift": merge.report.base_drift, "rank": merge.report.rank[1]}
            results[name] = figures | judge_deltas(host, judge, merge.factors, sprites, arguments)
            if arguments.results:
                arguments.results.parent.mkdir(parents=True, exist_ok=True)
                arguments.results.write_text(json.dumps(results, indent=1), "utf-8")
        print(table({name: results[name]}).splitlines()[-1], flush=True)
    print(f"\n{', '.join(arguments.loras)}\n\n{table(results)}")


if __name__ == "__main__":
    main()
