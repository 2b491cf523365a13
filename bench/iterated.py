"""RegMean++ and IterIS: least squares on what enters the layers of the merged model itself.

Neither is a matter of one layer's problem: what they solve in a layer depends on how the layers before it were merged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lib_loraclr.merge import Stages, denoising, recorded_points
from lib_loraclr.model import Factors, precise
from lib_loraclr.progress import Stage
from lib_loraclr.recording import Examples, Run
from lib_loraclr.solving import Cut, LayerProblem, MergedLayer, Procedure

#: iterations of IterIS in the authors' configuration (github.com/HKUST-LongGroup/IterIS-merging)
ITERATIONS = 10
#: relative to a Gram's Frobenius norm, likewise
RIDGE = 1e-7
_UNET_ORDER = ("down_blocks", "mid_block", "up_blocks")


def blocks(keys: Sequence[str]) -> list[list[str]]:
    """Layer keys by the block they stand in, in the order in which a model runs them."""
    found: dict[tuple[int, int], list[str]] = {}
    for key in keys:
        place = re.search(r"(down_blocks|mid_block|up_blocks|layers)(?:_(\d+))?", key)
        name, number = (place[1], int(place[2] or 0)) if place else ("layers", 0)
        found.setdefault((_UNET_ORDER.index(name) if name in _UNET_ORDER else 0, number), []).append(key)
    return [found[place] for place in sorted(found)]


class RegMeanPlusPlus(Stages):
    """RegMean++ (arXiv 2508.03121): a block's inputs are recorded behind the merged blocks before it.

    Inside a block each LoRA's own layers run, and the blocks after it do not matter. Method and options are RegMean's.
    """

    def solve(self, procedure: Procedure, examples: Sequence[Examples]) -> dict[str, MergedLayer]:
        merged: dict[str, MergedLayer] = {}
        examples = _of_concepts(examples)
        for stages, keys in (
            ((Stage.TEXT_INPUTS, Stage.TEXT_LAYERS), self.text_encoder_keys),
            ((Stage.UNET_INPUTS, Stage.UNET_LAYERS), self.unet_keys),
        ):
            for block in blocks(keys):
                before = {key: layer.factors.to(self.host.device) for key, layer in merged.items()}
                text = keys is self.text_encoder_keys
                runs = self._text_encoder_runs(examples) if text else self._unet_runs(examples, before)
                runs = [Run(run.teacher, {**run.deltas, **before}, run.samples, run.evaluate) for run in runs]
                recorded = self._record(stages[0], block, runs)
                merged |= self._merge(stages[1], block, procedure, self.cut, recorded)
        return merged


class IterIS(Stages):
    """IterIS (arXiv 2411.15231, eq. 5): outputs of each LoRA on its own inputs, at the inputs of the merged model, iterated.

    `ΔW = (Σ λ_i D_i X_i^T X̃_i) (Σ λ_i X̃_i^T X̃_i)^-1`, `X̃` those inputs, recorded with the last iteration's result on the same
    prompts and points, row by row; `λ_i` is `||W_i||² / ||X_i W_i^T||²` of the whole weights.
    """

    def solve(self, procedure: Procedure, examples: Sequence[Examples]) -> dict[str, MergedLayer]:
        own = self._inputs(examples, None)
        merged = self._solved(own, own)
        for _ in range(ITERATIONS - 1):
            before = {key: layer.factors.to(self.host.device) for key, layer in merged.items()}
            merged = self._solved(own, self._inputs(examples, before))
        return merged

    def _inputs(self, examples: Sequence[Examples], merged: Mapping[str, Factors] | None) -> dict[str, list]:
        """Layer key -> inputs of each concept, in the order of the examples."""
        recorded: dict[str, list] = {}
        own = _of_concepts(examples)
        for stage, keys, runs in (
            (Stage.TEXT_INPUTS, self.text_encoder_keys, self._text_encoder_runs(own)),
            (Stage.UNET_INPUTS, self.unet_keys, self._points(own)),
        ):
            if merged is not None:
                runs = [Run(run.teacher, merged, run.samples, run.evaluate) for run in runs]
            for teacher, inputs in self._record(stage, keys, runs):
                for key in keys:
                    recorded.setdefault(key, []).append((teacher, inputs[self.serves[key]]))
        return recorded

    def _points(self, examples: Sequence[Examples]) -> list[Run]:
        """Some of every teacher's points, with all of its LoRA's layers."""
        runs = []
        for own in examples:
            few = recorded_points(own)
            deltas = self._part(own.teacher, [*self.text_encoder_keys, *self.unet_keys])
            runs.append(Run(own.teacher, deltas, len(few), denoising(self.host, few.x, few.t, few.prompts)))
        return runs

    def _solved(self, own: Mapping[str, list], merged: Mapping[str, list]) -> dict[str, MergedLayer]:
        self.progress.start(Stage.UNET_LAYERS, len(own))
        result = {}
        for key, recorded in own.items():
            problem = self.layer_merger.problem(key, [], self.host.device, weight=True)
            targets = [problem.target(teacher.active) for teacher, _ in recorded]
            inputs = [rows.float() for _, rows in recorded]
            seen = [rows.float() for _, rows in merged[key]]
            delta = iteris(problem, targets, inputs, seen)
            cut = Cut(self.request.rank, self.request.kept)(delta, seen)
            result[key] = MergedLayer(cut.factors.to(torch.float32), {}, cut.kept)
            self.progress.advance(1, key)
        return result


def _of_concepts(examples: Sequence[Examples]) -> list[Examples]:
    """Without those of prompts without trigger words, of which neither paper knows."""
    return [own for own in examples if own.teacher.concept is not None]


def iteris(
    problem: LayerProblem, targets: Sequence[Factors], own: Sequence[Tensor], merged: Sequence[Tensor]
) -> Factors:
    """One layer's step of IterIS.

    Args:
        problem: with the layer's own weight
        targets: each concept's delta
        own: `X_i`, what enters the layer with the concept alone, `[n, d_in]`
        merged: `X̃_i`, what enters it in the merged model, the same rows
    """
    basis = precise(problem.column_space())
    total, right = 0.0, 0.0
    for target, x, seen in zip(targets, map(precise, own), map(precise, merged), strict=True):
        delta = precise(target.dense())
        whole = precise(problem.weight) + delta
        weight = whole.square().sum() / (x @ whole.mT).square().sum().clamp_min(1e-300)
        across, gram = ridged(x.mT @ seen), ridged(seen.mT @ seen)
        total, right = total + weight * gram, right + weight * (basis.mT @ delta) @ across
    solution = torch.linalg.solve(total.mT, right.mT).mT
    like = problem.present[0].up
    return Factors(basis.to(like), solution.to(like))


def ridged(gram: Tensor) -> Tensor:
    """With `RIDGE` times its Frobenius norm on the diagonal."""
    return gram + RIDGE * gram.norm() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
