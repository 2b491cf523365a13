"""The contrastive objective at the model's output: all factors of the merge together, against the teachers' predictions.

Layer by layer the UNet cannot keep many concepts apart; errors add up over hundreds of layers. Here the same objective
is minimised where it counts, at the network's prediction, starting from the layer-wise merge (docs/method.md, "At
the output"). The base weights stay frozen in whatever precision they are; factors and optimiser state are fp32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import LoraclrError
from ..model import Factors, balanced, concatenate, free_cached, is_out_of_memory
from ..recording import Examples, Predictor
from ..solving import RefinementOptions, Terms, output_terms
from .retention import Retention, measure

# torch 2.3 moved it
GradScaler = torch.amp.GradScaler if hasattr(torch.amp, "GradScaler") else torch.cuda.amp.GradScaler

#: share of each batch that keeps the predictions without trigger, which guidance subtracts at every step
NEGATIVE_SHARE = 0.25
#: how often retention on the held-back examples is looked at
CHECKS = 6
#: checks without a better retention after which the run stops
PATIENCE = 3


@dataclass(frozen=True)
class Refined:
    """Attributes:
    factors: layer key -> factors, fp32 on the CPU
    reason: "steps" (all were made) or "stalled" (retention on the held-back examples no longer improved)
    steps: how many were made
    history: one entry per check: step, mean loss and share of active hinges since the last one, retention on the
        held-back examples
    """

    factors: dict[str, Factors]
    reason: str
    steps: int
    history: tuple[Mapping[str, float], ...] = field(default=())


@dataclass(frozen=True)
class _Batch:
    """`b` predictions to compare; the fields are those of `solving.output_terms`."""

    prompts: list[str]
    x: Tensor
    t: Tensor
    target: Tensor
    scale: Tensor
    other: Tensor
    apart: Tensor
    importance: Tensor


class _Turns:
    """Draws points of examples: teachers in turn, points of a teacher without replacement until all were had."""

    def __init__(self, examples: Sequence[Examples], generator: torch.Generator) -> None:
        self._examples, self._generator = examples, generator
        self._queues: list[list[int]] = [[] for _ in examples]
        self._turn = 0

    def next(self) -> tuple[Examples, int]:
        turn = self._turn % len(self._examples)
        self._turn += 1
        own = self._examples[turn]
        if not self._queues[turn]:
            self._queues[turn] = torch.randperm(len(own), generator=self._generator).tolist()
        return own, self._queues[turn].pop()


class _Sampler:
    """Draws batches: `NEGATIVE_SHARE` of each asks for the negative prompt's prediction, the rest for the prompts' own."""

    def __init__(self, examples: Sequence[Examples], negative_prompt: str, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.negative_prompt = negative_prompt
        # A concept merged alone has no teacher without triggers (recording.make_teachers), and keeps what it does there.
        self._share = NEGATIVE_SHARE if len(examples) > 1 else 0.0
        self._prompted, self._negatives = _Turns(examples, generator), _Turns(examples, generator)
        self._scales = _scales(examples)

    def draw(self, size: int, device: torch.device) -> _Batch:
        negatives = round(size * self._share)
        rows = [self._row(*self._prompted.next()) for _ in range(size - negatives)]
        rows += [self._negative_row(*self._negatives.next()) for _ in range(negatives)]
        prompts, *columns = zip(*rows, strict=True)
        return _Batch(list(prompts), *[torch.stack(column).to(device) for column in columns])

    def _row(self, own: Examples, k: int) -> tuple:
        target = own.target[k].float()
        other = target if own.other is None else own.other[k].float()
        return (own.prompts[k], *self._common(own, k, target), other, (target - other).norm(), self._importance(own))

    def _negative_row(self, own: Examples, k: int) -> tuple:
        target = own.negative_target[k].float()
        nothing = torch.zeros(())  # no other concept to stay away from
        return (self.negative_prompt, *self._common(own, k, target), target, nothing, self._importance(own))

    def _common(self, own: Examples, k: int, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return own.x[k].float(), own.t[k], target, self._scales[own.teacher.name]

    def _importance(self, own: Examples) -> Tensor:
        return torch.tensor(own.teacher.importance)


def _scales(examples: Sequence[Examples]) -> dict[str, Tensor]:
    """What each teacher's squared errors are divided by: the geometric mean of its own effect and the mean effect.

    Divided by its own effect alone, a concept that hardly changes anything would count as much as one that changes everything;
    by the mean alone, it would hardly count. A heuristic, halfway between the two.
    """
    effects = {own.teacher.name: own.effect.nanmean() for own in examples if own.teacher.concept is not None}
    smallest = torch.finfo(torch.float32).tiny
    mean = torch.stack(list(effects.values())).mean().clamp_min(smallest)
    return {
        own.teacher.name: (effects.get(own.teacher.name, mean) * mean).sqrt().clamp_min(smallest) for own in examples
    }


def refine(
    predictor: Predictor,
    start: Mapping[str, Factors],
    examples: Sequence[Examples],
    held_back: Sequence[Examples],
    options: RefinementOptions,
    *,
    seed: int,
) -> Refined:
    """Minimise the contrastive objective at the model's output over all factors, by AdamW with a cosine schedule.

    Args:
        start: layer key -> factors of the layer-wise merge
        examples: what the teachers predict
        held_back: examples of other seeds, which decide when to stop and which point was best

    Raises:
        LoraclrError: the loss is not finite, or the graphics card cannot hold even one sample
    """
    device = predictor.host.device
    parameters = {key: _trainable(factors, device) for key, factors in start.items()}
    flat = [tensor for factors in parameters.values() for tensor in (factors.up, factors.down)]
    anchor = {key: Factors(f.up.detach().clone(), f.down.detach().clone()) for key, f in parameters.items()}
    optimizer = torch.optim.AdamW(flat, lr=options.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    sampler = _Sampler(examples, predictor.negative_prompt, seed)
    fit = _fit(predictor, parameters, sampler, options)
    scaler = _gradient_scaler(predictor)
    watch = _Watch(predictor, parameters, held_back, options.steps)
    for step in range(1, options.steps + 1):
        _set_learning_rate(optimizer, options.learning_rate, step, options.steps)
        batch = sampler.draw(options.batch_size, device)
        while (found := _try_backward(predictor, parameters, batch, options.terms, fit, scaler)) is None:
            optimizer.zero_grad(set_to_none=True)
            free_cached(device)
            fit = fit.smaller()
        loss, active = found
        loss += _delta_penalty(parameters, anchor, options.terms.delta, scaler)
        if not math.isfinite(loss):
            raise LoraclrError(
                f"The refinement's loss became {loss} at step {step}: lower learning_rate "
                f"({options.learning_rate}), or use effort=fast."
            )
        # steps whose gradients overflowed are left out by the scaler, which then scales less
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        predictor.progress.advance(1, f"step {step}, loss {loss:.4f}")
        if watch.stalled(step, loss, active):
            return Refined(watch.best, "stalled", step, tuple(watch.history))
    return Refined(watch.best, "steps", options.steps, tuple(watch.history))


class _Watch:
    """Looks at the held-back examples now and then, keeps the best point, and says when nothing improves any more."""

    def __init__(
        self, predictor: Predictor, parameters: Mapping[str, Factors], held_back: Sequence[Examples], steps: int
    ) -> None:
        self._predictor, self._parameters, self._held_back, self._steps = predictor, parameters, held_back, steps
        self._interval = max(1, math.ceil(steps / CHECKS))
        self._stale, self._recent, self.history = 0, [], []
        self._retention = measure(predictor, parameters, held_back, units=0)
        self.best = _snapshot(parameters)
        predictor.progress.log(f"refinement: start, {self._shown(self._retention)}")

    def stalled(self, step: int, loss: float, active: float) -> bool:
        """Note a step, and look if it is time to. True if `PATIENCE` looks in a row brought nothing."""
        self._recent.append((loss, active))
        if step % self._interval and step != self._steps:
            return False
        loss, active = (sum(values) / len(values) for values in zip(*self._recent, strict=True))
        self._recent = []
        retention = measure(self._predictor, self._parameters, self._held_back, units=0)
        self.history.append({"step": step, "loss": loss, "active_hinges": active, "retention": retention.mean})
        self._predictor.progress.log(
            f"refinement: step {step}/{self._steps}, loss {loss:.4f}, hinges active {active:.0%}, {self._shown(retention)}"
        )
        if retention.mean > self._retention.mean:
            self.best, self._retention, self._stale = _snapshot(self._parameters), retention, 0
        else:
            self._stale += 1
        return self._stale == PATIENCE

    @staticmethod
    def _shown(retention: Retention) -> str:
        return f"retention {retention.mean:.3f} (weakest {retention.weakest:.3f})"


def _trainable(factors: Factors, device: torch.device) -> Factors:
    even = balanced(factors.to(torch.float32)).to(device)
    return Factors(even.up.contiguous().requires_grad_(), even.down.contiguous().requires_grad_())


def _snapshot(parameters: Mapping[str, Factors]) -> dict[str, Factors]:
    return {key: Factors(f.up.detach().cpu().clone(), f.down.detach().cpu().clone()) for key, f in parameters.items()}


def _gradient_scaler(predictor: Predictor) -> GradScaler:
    """Scales the loss where the model is in half precision, whose smallest numbers the gradients would fall below."""
    half = any(layer.weight.dtype == torch.float16 for layer in predictor.host.layers().values())
    return GradScaler(enabled=half and predictor.host.device.type == "cuda")


def _set_learning_rate(optimizer: torch.optim.Optimizer, highest: float, step: int, steps: int) -> None:
    """A short linear warm-up, then half a cosine down to zero."""
    warm_up = max(1, min(5, steps // 10))
    rate = min(1.0, step / warm_up) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
    for group in optimizer.param_groups:
        group["lr"] = highest * rate


@dataclass(frozen=True)
class _Fit:
    """How a batch fits into the memory: some samples at a time, their activations kept or recomputed."""

    samples: int
    recompute: bool

    def smaller(self) -> _Fit:
        """What needs less.

        Raises:
            LoraclrError: nothing does
        """
        if self.samples > 1:
            return replace(self, samples=math.ceil(self.samples / 2))
        if self.recompute:
            raise _too_small()
        return replace(self, recompute=True)


def _too_small() -> LoraclrError:
    return LoraclrError(
        "The graphics memory is too small to refine this merge even one sample at a time: use effort fast, merge fewer LoRAs "
        "at a time, or record smaller pictures (width and height)."
    )


def _try_backward(
    predictor: Predictor, parameters: Mapping[str, Factors], batch: _Batch, terms: Terms, fit: _Fit, scaler: GradScaler
) -> tuple[float, float] | None:
    """As `_backward`; None where the graphics card ran out of memory on the way, with gradients half done."""
    try:
        with predictor.host.recomputing() if fit.recompute else nullcontext():
            return _backward(predictor, parameters, batch, terms, fit.samples, scaler)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return None


def _backward(
    predictor: Predictor,
    parameters: Mapping[str, Factors],
    batch: _Batch,
    terms: Terms,
    micro_batch: int,
    scaler: GradScaler,
) -> tuple[float, float]:
    """Gradients of one batch's loss into the factors, some samples at a time.

    Returns:
        the loss, and the share of samples with a rival on which the hinge acts
    """
    size = len(batch.t)
    total, active, rivals = 0.0, 0, 0
    # the changed weights stay in place for the backward pass too: activations may be recomputed in it
    with predictor.host.apply(parameters):
        for start in range(0, size, micro_batch):
            loss, on, asked = _loss(predictor, batch, slice(start, start + micro_batch), terms)
            scaler.scale(loss / size).backward()
            total, active, rivals = total + float(loss.detach()) / size, active + on, rivals + asked
    return total, active / rivals if rivals else 0.0


def _loss(predictor: Predictor, batch: _Batch, part: slice, terms: Terms) -> tuple[Tensor, int, int]:
    """Loss of some samples with the model as it is, how many hinges act, and how many could."""
    unique = sorted(set(batch.prompts[part]))
    conditioning = predictor.host.encode(unique)[[unique.index(prompt) for prompt in batch.prompts[part]]]
    prediction = predictor.host.denoise(batch.x[part], batch.t[part], conditioning)
    positive, negative = output_terms(
        prediction, batch.target[part], batch.scale[part], batch.other[part], batch.apart[part], terms.margin
    )
    loss = (batch.importance[part] * (terms.positive * positive + terms.negative * negative)).sum()
    return loss, int((negative > 0).sum()), int((batch.apart[part] > 0).sum())


def _delta_penalty(
    parameters: Mapping[str, Factors], anchor: Mapping[str, Factors], strength: float, scaler: GradScaler
) -> float:
    """Adds the gradient of `λ_delta Σ ||ΔW - ΔW_start||² / Σ ||ΔW_start||²`, and returns its value.

    Both norms come from `[r, r]` Gram matrices of the factors; no delta is made dense.
    """
    if strength == 0:
        return 0.0
    size = sum(factors.norm() ** 2 for factors in anchor.values())
    distance = torch.zeros((), device=next(iter(parameters.values())).up.device)
    for key, factors in parameters.items():
        difference = concatenate([factors, anchor[key].scaled(-1)])
        distance = distance + ((difference.up.mT @ difference.up) * (difference.down @ difference.down.mT)).sum()
    penalty = strength * distance / max(size, torch.finfo(torch.float32).tiny)
    scaler.scale(penalty).backward()
    return float(penalty.detach())


#: bytes, where not even the card knows how many it would have taken
_TOO_MANY = 1 << 62


#: on a graphics card: copies of the factors that are made after the look at what fits (gradients, AdamW's two moments, and one
#: more while it steps)
_STATES = 4
#: what the largest block of a UNet keeps, as a share of all that it keeps: a few blocks at full resolution have most of it
_LARGEST_BLOCK = 0.25


def _fit(
    predictor: Predictor, parameters: Mapping[str, Factors], sampler: _Sampler, options: RefinementOptions
) -> _Fit:
    """How many samples fit at a time, and whether activations must be recomputed for even one to fit.

    Measured: one sample, and two where one fits, are run with their saved tensors counted. Nothing is counted inside blocks whose
    activations are recomputed, one block at a time: what one keeps is estimated.

    Raises:
        LoraclrError: the graphics card runs out of memory with one
    """
    states = _STATES * sum(f.up.nbytes + f.down.nbytes for f in parameters.values())
    budget = predictor.activation_budget(states)

    def saved(samples: int) -> int:
        return _saved_bytes(predictor, parameters, sampler.draw(samples, predictor.host.device), options.terms)

    def even(fitting: int, recompute: bool) -> _Fit:
        """In chunks of nearly the same size."""
        chunks = math.ceil(options.batch_size / min(options.batch_size, max(1, fitting)))
        return _Fit(math.ceil(options.batch_size / chunks), recompute)

    kept = saved(1)
    if kept <= budget:
        # the changed weights are kept once per evaluation, whatever the number of samples
        return even(1 + (budget - kept) // max(1, saved(2) - kept), recompute=False)
    with predictor.host.recomputing():
        one = saved(1)
        if one == _TOO_MANY:
            raise _too_small()
        block = int(_LARGEST_BLOCK * kept)
        if one + block > budget:
            return _Fit(1, recompute=True)
        return even(1 + (budget - one - block) // max(1, saved(2) - one + block), recompute=True)


def _saved_bytes(predictor: Predictor, parameters: Mapping[str, Factors], batch: _Batch, terms: Terms) -> int:
    """Bytes that autograd keeps for the backward pass of a batch, each storage counted once; `_TOO_MANY` where memory ran out."""
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    try:
        with predictor.host.apply(parameters), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            _loss(predictor, batch, slice(None), terms)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return _TOO_MANY
    return max(1, sum(storages.values()))
