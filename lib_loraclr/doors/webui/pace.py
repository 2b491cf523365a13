"""How fast this computer evaluates the loaded checkpoint: measured when somebody asks, and set right by every merge.

A merge is slower than a lone evaluation by what a short measurement cannot see (backward passes, other programs, the work
per layer). By how much is remembered per checkpoint and size, over restarts too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from modules import cache, shared

from ...errors import LoraclrError
from ...hosts import running
from ...merge import Pace, seconds_per_sample, usual_pace
from ...model import Host, is_out_of_memory
from ...progress import PlannedStage, Stage, Work
from ...recording import with_size
from ...request import MergeRequest

#: seconds for which a measurement is taken to hold: other programs come and go
FRESH = 60.0
#: seconds of a kind of work that are enough to go by, and for how many a guess counts beside them
_ENOUGH, _GUESSED = 60.0, 10.0
#: of what is remembered: kind of work -> seconds of it that it was learnt from
_TRUSTED = "seconds"
#: what a pace is remembered for: checkpoint, height, width
Key = tuple[str, int, int]


@dataclass(frozen=True)
class _Measured:
    """When an evaluation took how many seconds, and what is to be expected of the device that it ran on."""

    seconds: float
    at: float
    usual: Pace = Pace()


_measured: dict[Key, _Measured] = {}


def sized(request: MergeRequest, host: Host) -> MergeRequest:
    """The request with the size of its pictures, as the merge will choose it."""
    metadata = []
    for concept in request.concepts:
        try:
            metadata.append(running.find_lora(concept.label).metadata)
        except LoraclrError:  # deleted meanwhile, which is said elsewhere
            continue
    return replace(request, recording=with_size(request.recording, metadata, host.default_size))


def key_of(request: MergeRequest, host: Host) -> Key:
    recording = sized(request, host).recording
    return host.checkpoint, recording.height, recording.width


def seconds_per_unit(key: Key) -> dict[Work, float]:
    """Kind of work -> seconds expected for one unit of it; as if an evaluation took a second where none was measured."""
    measured = _measured.get(key)
    return _remembered(key).seconds(measured.seconds if measured else 1.0)


def known(key: Key) -> bool:
    """Whether an evaluation was ever measured, since the WebUI was started."""
    return key in _measured


def fresh(key: Key) -> bool:
    return known(key) and time.monotonic() - _measured[key].at < FRESH


def measure(host: Host, key: Key) -> None:
    """Measure unless that was done just now; the host is a session's."""
    if not fresh(key):
        seconds = seconds_per_sample(host, *key[1:])
        _measured[key] = _Measured(seconds, time.monotonic(), usual_pace(host.device))


def learn(key: Key, planned: Iterable[PlannedStage], taken: Mapping[Stage, float]) -> None:
    """Set the pace right by a merge that ended.

    What took long counts for much, on a scale of factors, and never for all: a merge of seconds is mostly beginnings and ends,
    and one beside a heavy program shall not spoil the next estimate.

    Args:
        planned: what was done
        taken: stage -> seconds
    """
    pace, trusted = _remembered(key), dict(_store().get(_name(key), {}).get(_TRUSTED, {}))
    done = [item for item in planned if item.stage in taken]
    for kind, before in asdict(pace).items():
        own = [item for item in done if item.work is Work(kind)]
        amount, seconds = sum(item.amount for item in own), sum(taken[item.stage] for item in own)
        if amount and seconds:
            seen = seconds / amount / (1.0 if kind == Work.LAYER.value else _measured[key].seconds)
            known_for = trusted.get(kind, 0.0)
            new, old = min(seconds, _ENOUGH), _GUESSED + min(known_for, _ENOUGH)
            pace = replace(pace, **{kind: (seen**new * before**old) ** (1 / (new + old))})
            trusted[kind] = known_for + seconds
    _store()[_name(key)] = {**asdict(pace), _TRUSTED: trusted}


def timed(key: Key) -> bool:
    """Whether merges on this checkpoint at this size have shown what to expect."""
    trusted = _store().get(_name(key), {}).get(_TRUSTED, {})
    return trusted.get(Work.EVALUATION.value, 0.0) >= _GUESSED


def _remembered(key: Key) -> Pace:
    """What is known of this checkpoint at this size, or at another size, or of another checkpoint, or of such devices."""
    stored = _store()
    names = [name for name in stored if name != _name(key)]
    names.sort(key=lambda name: name.rpartition(", ")[0] == key[0])  # those of the same checkpoint last
    for name in [_name(key), *reversed(names)]:
        if name in stored:
            return Pace(**{kind: value for kind, value in stored[name].items() if kind != _TRUSTED})
    return _measured[key].usual if key in _measured else Pace()


def _store() -> MutableMapping[str, dict[str, Any]]:
    return cache.cache("loraclr-pace")


def _name(key: Key) -> str:
    checkpoint, height, width = key
    return f"{checkpoint}, {width}x{height}"


def probe(request: MergeRequest, *, wait: bool) -> Host | None:
    """The loaded checkpoint, its pace measured; None if there is nothing to say yet and the model is busy.

    Args:
        wait: for the model, and measure it now; else, and while a picture is made, what was measured before has to do

    Raises:
        LoraclrError: as `running.session`, or the graphics card has not enough memory left to measure it
    """
    host = running.peek()
    key = key_of(request, host) if host is not None else None
    if key and known(key) and (fresh(key) or shared.state.job or not wait):
        return host
    if not wait and (shared.state.job or host is None):
        return None
    with running.session(job="LoRACLR estimate") as host:
        try:
            measure(host, key_of(request, host))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise LoraclrError(
                "The graphics memory is too small to run the checkpoint on one picture: record smaller ones (width and height "
                "under Advanced), or close what else uses the card."
            ) from error
        return host
