"""The contrastive objective at the model's output: all factors of the merge together, against the teachers' predictions.

Layer by layer the UNet cannot keep many concepts apart; errors add up over hundreds of layers. Here the same objective
is minimised where it counts, at the network's prediction, starting from the layer-wise merge (docs/method.md, "At
the output"). The base weights stay frozen in whatever precision they are; factors and optimiser state are fp32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import LoraclrError
from ..model import Factors, balanced, free_cached, is_out_of_memory
from ..recording import Examples, Predictor
from ..solving import RefinementOptions, Terms, output_terms
from .batches import Batch, Sampler
from .fitting import Fit, find_fit
from .optimizers import Muon
from .retention import Retention, measure
from .scales import NoiseLevels

# torch 2.3 moved it
GradScaler = torch.amp.GradScaler if hasattr(torch.amp, "GradScaler") else torch.cuda.amp.GradScaler

#: how often retention on the held-back examples is looked at
CHECKS = 6
#: checks without a better retention after which the run stops; they count from half-way on, since long steps at the beginning
#: mend more than the next look shows
PATIENCE = 2


@dataclass(frozen=True)
class Refined:
    """What the refinement came to.

    Attributes:
        factors: layer key -> factors, fp32 on the CPU
        reason: "steps" (all were made) or "stalled" (retention on the held-back examples no longer improved)
        steps: how many were made
        history: one entry per check: step, mean loss and contrast since the last one, retention on the held-back examples
    """

    factors: dict[str, Factors]
    reason: str
    steps: int
    history: tuple[Mapping[str, float], ...] = field(default=())


def refine(
    predictor: Predictor,
    start: Mapping[str, Factors],
    examples: Sequence[Examples],
    held_back: Sequence[Examples],
    options: RefinementOptions,
    *,
    seed: int,
) -> Refined:
    """Minimise the contrastive objective at the model's output over all factors, by Muon with a cosine schedule.

    Args:
        start: layer key -> factors of the layer-wise merge
        examples: what the teachers predict
        held_back: examples in other words and of other seeds, which decide when to stop and which point was best

    Raises:
        LoraclrError: the loss is not finite, or the graphics card cannot hold even one sample
    """
    device = predictor.host.device
    parameters = {key: _trainable(factors, device) for key, factors in start.items()}
    anchor = _Anchor(parameters, options.terms.delta)
    optimizer = Muon([tensor for f in parameters.values() for tensor in (f.up, f.down)], lr=options.learning_rate)
    sampler = Sampler(examples, predictor.negative_prompt, options, seed)
    # of its own, so that what is learnt from does not depend on how much memory there is
    tried = Sampler(examples, predictor.negative_prompt, options, seed)
    fit = find_fit(
        predictor,
        parameters,
        lambda samples: _loss(predictor, tried.singles(samples), options.terms),
        options.batch_size,
    )
    scaler = _gradient_scaler(predictor)
    watch = _Watch(predictor, parameters, held_back, NoiseLevels.fit(examples), options.steps)
    for step in range(1, options.steps + 1):
        _set_learning_rate(optimizer, options.learning_rate, step, options.steps)
        batches = sampler.draw()
        while (found := _backward(predictor, parameters, batches, options.terms, fit, scaler)) is None:
            optimizer.zero_grad(set_to_none=True)
            free_cached(device)
            fit = fit.smaller()
        loss, contrast = found
        loss += anchor.pull(parameters, scaler)
        if not math.isfinite(loss):
            raise LoraclrError(
                f"The refinement's loss became {loss} at step {step}: lower learning_rate "
                f"({options.learning_rate}), or use effort=layers."
            )
        # steps whose gradients overflowed are left out by the scaler, which then scales less
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        predictor.progress.advance(1, f"step {step}, loss {loss:.4f}")
        if watch.stalled(step, loss, contrast):
            return Refined(watch.best, "stalled", step, tuple(watch.history))
    return Refined(watch.best, "steps", options.steps, tuple(watch.history))


class _Watch:
    """Looks at the held-back examples now and then, keeps the best point, and says when nothing improves any more."""

    def __init__(
        self,
        predictor: Predictor,
        parameters: Mapping[str, Factors],
        held_back: Sequence[Examples],
        levels: NoiseLevels,
        steps: int,
    ) -> None:
        self._predictor, self._parameters, self._held_back = predictor, parameters, held_back
        self._levels, self._steps = levels, steps
        self._interval = max(1, math.ceil(steps / CHECKS))
        self._stale, self._recent, self.history = 0, [], []
        self._retention = self._measured()
        self.best = _snapshot(parameters)
        predictor.progress.log(f"refinement: start, {self._shown(self._retention)}")

    def stalled(self, step: int, loss: float, contrast: float) -> bool:
        """Note a step, and look if it is time to. True if `PATIENCE` looks in a row brought nothing."""
        self._recent.append((loss, contrast))
        if step % self._interval and step != self._steps:
            return False
        loss, contrast = (sum(values) / len(values) for values in zip(*self._recent, strict=True))
        self._recent = []
        retention = self._measured()
        self.history.append({"step": step, "loss": loss, "contrast": contrast, "retention": retention.mean})
        self._predictor.progress.log(
            f"refinement: step {step}/{self._steps}, loss {loss:.4f}, contrast {contrast:.3f}, {self._shown(retention)}"
        )
        if retention.mean > self._retention.mean:
            self.best, self._retention, self._stale = _snapshot(self._parameters), retention, 0
        elif 2 * step > self._steps:
            self._stale += 1
        return self._stale == PATIENCE

    def _measured(self) -> Retention:
        """In the unit of the loss."""
        return measure(self._predictor, self._parameters, self._held_back, levels=self._levels, units=0)

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


def _backward(
    predictor: Predictor,
    parameters: Mapping[str, Factors],
    batches: Sequence[Batch],
    terms: Terms,
    fit: Fit,
    scaler: GradScaler,
) -> tuple[float, float] | None:
    """Gradients of one step's loss into the factors, some samples at a time.

    Returns:
        the loss, and the mean of the contrastive term; None where the graphics card ran out of memory on the way, with
        gradients half done
    """
    total, contrast = 0.0, 0.0
    try:
        # the changed weights stay in place for the backward pass too: activations may be recomputed in it
        with predictor.host.recomputing() if fit.recompute else nullcontext(), predictor.host.apply(parameters):
            for batch in batches:
                share = 1 / (len(batch) * len(batches))
                for part in batch.parts(fit.rows(batch.windows)):
                    loss, gone = _loss(predictor, part, terms)
                    scaler.scale(loss * share).backward()
                    total, contrast = total + float(loss.detach()) * share, contrast + gone * share
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    return total, contrast


def _loss(predictor: Predictor, batch: Batch, terms: Terms) -> tuple[Tensor, float]:
    """Summed loss of some samples with the model as it is, and the sum of their contrastive terms."""
    device = predictor.host.device
    unique = sorted(set(batch.prompts))
    conditioning = predictor.host.encode(unique)[[unique.index(prompt) for prompt in batch.prompts]]
    prediction = predictor.host.denoise(batch.x.to(device), batch.t.to(device), conditioning)
    target, scale, other, apart = (
        column.to(device) for column in (batch.target, batch.scale, batch.other, batch.apart)
    )
    positive, negative = output_terms(prediction, target, scale, other, apart)
    loss = (batch.importance.to(device) * (terms.positive * positive + terms.contrast * negative)).sum()
    return loss, float(negative.detach().sum())


class _Anchor:
    """`λ_delta Σ ||ΔW - ΔW_start||² / Σ ||ΔW_start||²`, from `[r, r]` products of the factors; no delta is made dense."""

    def __init__(self, parameters: Mapping[str, Factors], strength: float) -> None:
        self._start = {key: Factors(f.up.detach().clone(), f.down.detach().clone()) for key, f in parameters.items()}
        size = sum(f.norm() ** 2 for f in self._start.values())
        self._weight = strength / max(size, torch.finfo(torch.float32).tiny)

    @torch.no_grad()
    def pull(self, parameters: Mapping[str, Factors], scaler: GradScaler) -> float:
        """Adds the penalty's gradient to the factors', in closed form, and returns its value."""
        if not self._weight:
            return 0.0
        scale = scaler.get_scale() if scaler.is_enabled() else 1.0
        total = torch.zeros((), device=next(iter(parameters.values())).up.device)
        for key, now in parameters.items():
            start = self._start[key]
            # of D = up down - up' down': D down^T and up^T D, without D
            by_up = now.up @ (now.down @ now.down.mT) - start.up @ (start.down @ now.down.mT)
            by_down = (now.up.mT @ now.up) @ now.down - (now.up.mT @ start.up) @ start.down
            _add_gradient(now.up, 2 * self._weight * scale * by_up)
            _add_gradient(now.down, 2 * self._weight * scale * by_down)
            # ||D||² = <D down^T, up> - <D, up' down'>
            cross = (start.up.mT @ now.up) @ (now.down @ start.down.mT)
            own = ((start.up.mT @ start.up) * (start.down @ start.down.mT)).sum()
            total += (by_up * now.up).sum() - cross.diagonal().sum() + own
        return self._weight * float(total.clamp_min(0))


def _add_gradient(tensor: Tensor, gradient: Tensor) -> None:
    tensor.grad = gradient if tensor.grad is None else tensor.grad.add_(gradient)
