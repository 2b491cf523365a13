"""The contrastive objective at the model's output: all factors of the merge together, against the teachers' predictions.

Layer by layer the UNet cannot keep many concepts apart; errors add up over hundreds of layers. Here the same objective
is minimised where it counts, at the network's prediction, starting from the layer-wise merge (docs/method.md, "At
the output"). The base weights stay frozen in whatever precision they are; factors and optimiser state are fp32.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from ..errors import LoraclrError
from ..files import Kept
from ..model import Factors, Processes, free_cached, is_out_of_memory
from ..recording import Examples, Predictor
from ..solving import RefinementOptions, Terms
from .anchor import Anchor
from .batches import Batch, Sampler, StyleBatch
from .fitting import Fit, TooLittleMemory, ended_early, find_fit, went_smaller
from .loss_scale import LossScale
from .on_policy import OwnScenes
from .optimizers import Muon
from .retention import Retention, measure
from .scales import NoiseLevels
from .state import StateKeeper, factor_tensors, factors_of, restore_training, training_tensors
from .trained import TrainedFactors, balanced_in_fp32

#: how often retention on the held-back examples is looked at
CHECKS = 6
#: the checks after which the merge draws scenes itself: earlier it draws little but mixtures, and what it drew is not what it
#: would draw some dozens of steps later
ROLLOUTS_AFTER = (2, 4)
#: checks in a row after which the run stops that brought no better retention, and no rise that would bring it by the end; they
#: count from half-way on, since long steps at the beginning mend more than the next look shows
PATIENCE = 2


@dataclass(frozen=True)
class Refined:
    """What the refinement came to.

    Attributes:
        factors: layer key -> factors, fp32 on the CPU
        reason: "steps" (all were made), "stalled" (retention on the held-back examples no longer improved) or "memory" (the
            graphics card could not hold even one sample, or no longer)
        steps: how many were made
        history: one entry per check: step, mean loss and contrast since the last one, retention on the held-back examples
        fit: how many samples were run at a time in the end; None where not even one could be
        trouble: warnings of what the memory was too small for
    """

    factors: dict[str, Factors]
    reason: str
    steps: int
    history: tuple[Mapping[str, float], ...] = field(default=())
    fit: Fit | None = None
    trouble: tuple[str, ...] = ()


def refine(
    predictor: Predictor,
    start: Mapping[str, Factors],
    examples: Sequence[Examples],
    held_back: Sequence[Examples],
    options: RefinementOptions,
    *,
    seed: int,
    keeper: StateKeeper | None = None,
) -> Refined:
    """Minimise the contrastive objective at the model's output over all factors, by Muon with a cosine schedule.

    Args:
        start: layer key -> factors of the layer-wise merge
        examples: what the teachers predict
        held_back: examples in other words and of other seeds, which decide when to stop and which point was best
        keeper: has the state of a refinement that was ended, which goes on, and keeps that of this one

    Raises:
        LoraclrError: the loss is not finite, or one of several processes has no room for even one sample
    """
    processes = predictor.processes
    kept = processes.from_one(keeper.find() if processes.rank == 0 else None) if keeper else None
    # two, so that what is learnt from does not depend on how much memory there is
    sampler, tried = Sampler(examples, options, seed), Sampler(examples, options, seed)

    def run(samples: int) -> object:
        return _loss(predictor, tried.singles(samples), options.terms)

    most = math.ceil(options.batch_size / processes.count)
    try:
        trained = TrainedFactors(start, predictor.host)
        fit = Fit(**kept.said["fit"]) if kept else find_fit(predictor, trained, run, most)
        watch = _Watch(predictor, trained, held_back, NoiseLevels.fit(examples), options.steps, kept)
        own = _own_scenes(predictor, examples, sampler, options, seed, None if watch.over else kept)
        steps = _Steps(predictor, trained, sampler, options, fit, kept)
    except (TooLittleMemory, RuntimeError) as error:
        if processes.count > 1 or not _no_room(error, processes):  # the others may have room
            raise
        return _not_begun(start, options)

    def keep(*, now: bool = False) -> None:
        if keeper and processes.rank == 0:
            keeper.keep(lambda: _joined(steps.state(), watch.state(), (own.state(), {})), now=now)

    reason = "steps"
    try:
        while not watch.over:
            found = steps.make(watch.next - steps.made, keep)
            watch.look(steps.made, *found)
            sampler.add(own.draw(trained.factors, steps.made), after=steps.made)
            keep(now=True)
            reason = "stalled" if watch.stalled else "steps"
    except (TooLittleMemory, RuntimeError) as error:
        if not _no_room(error, processes):
            raise
        reason = "memory"
    smaller = (went_smaller(steps.fit),) if steps.fit != fit else ()
    trouble = (ended_early(steps.made, options.steps),) if reason == "memory" else smaller
    return Refined(watch.best, reason, steps.made, tuple(watch.history), steps.fit, trouble)


def _not_begun(start: Mapping[str, Factors], options: RefinementOptions) -> Refined:
    begun = {key: balanced_in_fp32(factors.to("cpu")) for key, factors in start.items()}
    return Refined(begun, "memory", 0, trouble=(ended_early(0, options.steps),))


def _own_scenes(
    predictor: Predictor,
    examples: Sequence[Examples],
    sampler: Sampler,
    options: RefinementOptions,
    seed: int,
    kept: Kept | None,
) -> OwnScenes:
    """Where the merge will draw scenes itself; what was drawn in a refinement that goes on is drawn from at its time."""
    after = [step for check in ROLLOUTS_AFTER if (step := check * _interval(options.steps)) < options.steps]
    own = OwnScenes(predictor, examples, sampler.scenes, options.rollouts, seed=seed, after=after)
    for step, scenes in (own.restore(kept.tensors) if kept else {}).items():
        sampler.add(scenes, after=step)
    return own


def _no_room(error: Exception, processes: Processes) -> bool:
    """Whether it ends a refinement with the best there was.

    One sample too many does so in all processes at once (`_Steps._summed`); factors, momentum or a look that are, in one alone.
    """
    return isinstance(error, TooLittleMemory) or (processes.count == 1 and is_out_of_memory(error))


#: tensors, and what JSON can hold
_State = tuple[Mapping[str, Tensor], Mapping[str, object]]


def _joined(*states: _State) -> _State:
    tensors, said = zip(*states, strict=True)
    return dict(ChainMap(*tensors)), dict(ChainMap(*said))


class _Steps:
    """Makes steps, some at a time.

    Attributes:
        made: how many were made
        fit: how many samples are run at a time
    """

    def __init__(
        self,
        predictor: Predictor,
        trained: TrainedFactors,
        sampler: Sampler,
        options: RefinementOptions,
        fit: Fit,
        kept: Kept | None,
    ) -> None:
        self._predictor, self._trained, self._sampler = predictor, trained, sampler
        self._options, self.fit, self.made = options, fit, 0
        stacks = [tensor for stack in trained.stacks for tensor in (stack.up, stack.down)]
        self._optimizer = Muon(stacks, lr=options.learning_rate)
        self._anchor = Anchor(trained, options.terms.delta)
        self._scale = LossScale(enabled=_in_half_precision(predictor))
        self._found: list[tuple[float, float]] = []
        if kept:
            self._restore(kept)

    def make(self, count: int, after: Callable[[], None]) -> tuple[float, float]:
        """Make the next `count` steps, with the changed layers in place all the while.

        Args:
            after: called after each step

        Returns:
            mean loss and contrast since this was returned last

        Raises:
            LoraclrError: the loss is not finite
            TooLittleMemory: the graphics card cannot hold even one sample
        """
        with self._predictor.host.apply(self._trained.applied):
            for _ in range(count):
                self._found.append(self._step())
                after()
        loss, contrast = (sum(values) / len(self._found) for values in zip(*self._found, strict=True))
        self._found = []
        return loss, contrast

    def state(self) -> _State:
        """All that the next step depends on; what is drawn is not among it, and drawn again."""
        said = {"made": self.made, "scale": self._scale.value, "fit": asdict(self.fit), "found": self._found}
        return training_tensors(self._trained, self._optimizer), said

    def _restore(self, kept: Kept) -> None:
        restore_training(self._trained, self._optimizer, kept.tensors)
        self.made, self._scale.value = kept.said["made"], kept.said["scale"]
        self._found = [tuple(values) for values in kept.said["found"]]
        for _ in range(self.made):
            self._sampler.draw()
        self._predictor.progress.found(self.made)

    def _step(self) -> tuple[float, float]:
        batches = self._sampler.draw()
        while (found := self._backward(batches)) is None:
            self._trained.clear()
            free_cached(self._predictor.host.device)
            self.fit = self.fit.smaller()
        self.made += 1
        usable = self._scale.settle(self._trained.gradients)
        # asked of the device once a step, as it waits for all that was asked before
        loss, contrast = (found + torch.stack([self._anchor.pull(), found.new_zeros(())])).tolist()
        if not math.isfinite(loss):
            raise LoraclrError(
                f"The refinement's loss became {loss} at step {self.made}: lower learning_rate "
                f"({self._options.learning_rate}), or use effort=layers."
            )
        if usable:
            _set_learning_rate(self._optimizer, self._options.learning_rate, self.made, self._options.steps)
            self._optimizer.step()
            self._trained.refresh()
        self._trained.clear()
        self._predictor.progress.advance(1, f"step {self.made}, loss {loss:.4f}")
        return loss, contrast

    def _backward(self, batches: Sequence[Batch | StyleBatch]) -> Tensor | None:
        """Gradients of one step's loss into the factors, some samples at a time.

        Returns:
            the loss and the mean of the contrastive term, `[2]`; None where the graphics card ran out of memory on the way, with
            gradients half done
        """
        host, processes = self._predictor.host, self._predictor.processes
        found, failed = torch.zeros(2, device=host.device), False
        try:
            # the changed weights stay in place for the backward pass too: activations may be recomputed in it
            with host.recomputing() if self.fit.recompute else nullcontext():
                weights = [batch.weight(self._options.batch_size) for batch in batches]
                for batch, weight in zip(batches, weights, strict=True):
                    share = weight / sum(weights) / len(batch)
                    own = batch.share(processes.rank, processes.count)
                    for part in own.parts(self.fit.rows(batch.windows)):
                        loss, gone = _loss(self._predictor, part, self._options.terms)
                        (loss * (share * self._scale.value)).backward()
                        self._trained.gather()
                        found += share * torch.stack([loss.detach(), gone])
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failed = True
        # here, where the error and all that it holds on the card are gone
        if processes.count > 1:
            failed = self._summed(found, failed)
        return None if failed else found

    def _summed(self, found: Tensor, failed: bool) -> bool:
        """Gradients and `found` summed over all processes; whether one of them has failed."""
        flag = found.new_tensor([float(failed)])
        self._predictor.processes.sum_([flag, found, self._trained.gradients])
        return bool(flag)


class _Watch:
    """Looks at the held-back examples, keeps the best point, and says when nothing improves any more.

    Attributes:
        history, best: as of `Refined`
    """

    def __init__(
        self,
        predictor: Predictor,
        trained: TrainedFactors,
        held_back: Sequence[Examples],
        levels: NoiseLevels,
        steps: int,
        kept: Kept | None,
    ) -> None:
        self._predictor, self._trained, self._held_back = predictor, trained, held_back
        self._levels, self._steps = levels, steps
        if kept:
            self.history, self._stale = kept.said["history"], kept.said["stale"]
            self._retention = Retention(tuple(kept.said["retention"]), None)
            self.best = factors_of("best", kept.tensors, trained.factors)
            predictor.progress.log(f"refinement: goes on from step {kept.said['made']}/{steps}")
            return
        self._stale, self.history = 0, []
        self._retention = self._measured()
        self.best = trained.snapshot()
        predictor.progress.log(f"refinement: start, {self._shown(self._retention)}")

    @property
    def next(self) -> int:
        """The step after which to look."""
        return min(self._steps, (len(self.history) + 1) * _interval(self._steps))

    @property
    def over(self) -> bool:
        """Whether there is nothing to look after any more."""
        return self.stalled or bool(self.history and self.history[-1]["step"] == self._steps)

    @property
    def stalled(self) -> bool:
        """Whether `PATIENCE` looks in a row brought nothing."""
        return self._stale == PATIENCE

    def state(self) -> _State:
        """All that the next look depends on."""
        said = {"history": self.history, "stale": self._stale, "retention": self._retention.concepts}
        return factor_tensors("best", self.best), said

    def look(self, step: int, loss: float, contrast: float) -> None:
        """Look, and note what was found since the last look."""
        retention, before = self._measured(), self.history[-1]["retention"] if self.history else self._retention.mean
        self.history.append({"step": step, "loss": loss, "contrast": contrast, "retention": retention.mean})
        self._predictor.progress.log(
            f"refinement: step {step}/{self._steps}, loss {loss:.4f}, contrast {contrast:.3f}, {self._shown(retention)}"
        )
        if retention.mean > self._retention.mean:
            self.best, self._retention, self._stale = self._trained.snapshot(), retention, 0
        elif 2 * step > self._steps:
            looks_left = (self._steps - step) / _interval(self._steps)
            rises_enough = retention.mean + looks_left * (retention.mean - before) > self._retention.mean
            self._stale = 0 if rises_enough else self._stale + 1

    def _measured(self) -> Retention:
        """In the unit of the loss."""
        return measure(self._predictor, self._trained.factors, self._held_back, levels=self._levels, units=0)

    @staticmethod
    def _shown(retention: Retention) -> str:
        return f"retention {retention.mean:.3f} (weakest {retention.weakest:.3f})"


def _interval(steps: int) -> int:
    """How many steps there are from one check to the next."""
    return max(1, math.ceil(steps / CHECKS))


def _in_half_precision(predictor: Predictor) -> bool:
    return any(layer.weight.dtype == torch.float16 for layer in predictor.host.layers().values())


def _set_learning_rate(optimizer: torch.optim.Optimizer, highest: float, step: int, steps: int) -> None:
    """A short linear warm-up, then half a cosine down to zero."""
    warm_up = max(1, min(5, steps // 10))
    rate = min(1.0, step / warm_up) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
    for group in optimizer.param_groups:
        group["lr"] = highest * rate


def _loss(predictor: Predictor, batch: Batch | StyleBatch, terms: Terms) -> tuple[Tensor, Tensor]:
    """Summed loss of some samples with the model as it is, and the sum of their contrastive terms, `[]` each."""
    host = predictor.host

    def predict(prompts: Sequence[str], x: Tensor, t: Tensor) -> Tensor:
        unique = sorted(set(prompts))
        conditioning = host.encode(unique)[[unique.index(prompt) for prompt in prompts]]
        return host.denoise(x.to(host.device), t.to(host.device), conditioning)

    loss, contrast = batch.compare(predict, terms)
    return (batch.importance.to(host.device) * loss).sum(), contrast.detach().sum()
