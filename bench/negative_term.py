"""What the negative term brings: its weight 0 against others, at equal steps, over several seeds.

python -m bench.negative_term --seeds 3
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace

from bench.judge import DEMO, Judge
from bench.quality import demo_request, judge_deltas
from lib_loraclr.doors.cli.console import ConsoleProgress
from lib_loraclr.hosts.diffusers import load
from lib_loraclr.merge import merge_loras


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concepts", type=int, default=4)
    parser.add_argument("--weights", type=float, nargs="*", default=[0.0, 0.1, 1.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--pictures", type=int, default=16, help="per concept")
    parser.add_argument("--pairs", type=int, default=24, help="pictures with two concepts")
    arguments = parser.parse_args()
    host, judge, progress = load(DEMO / "emoji-sd1.safetensors"), Judge(), ConsoleProgress()
    request, sprites = demo_request(arguments.concepts)
    print("| weight | retention | weakest | identity | two concepts |\n|---|---|---|---|---|")
    for weight in arguments.weights:
        rows = []
        for seed in range(arguments.seeds):
            options = {"steps": arguments.steps, "negative": weight}
            merge = merge_loras(replace(request, options=options, seed=seed), host, progress)
            progress.close()
            kept = [concept.merged for concept in merge.report.concepts]
            seen = judge_deltas(host, judge, merge.factors, sprites, arguments.pictures, arguments.pairs)
            rows.append((sum(kept) / len(kept), min(kept), seen["identity"], seen["pairs"]))
        columns = zip(*rows, strict=True)
        print(f"| {weight:g} | " + " | ".join(spread(values) for values in columns) + " |", flush=True)


def spread(values: tuple[float, ...]) -> str:
    """Mean, and the standard deviation over the seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


if __name__ == "__main__":
    main()
