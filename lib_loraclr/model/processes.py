"""One merge in several processes: what each of them does, and how they tell each other what came of it.

All of them run the same program on the same inputs. Where work is divided, each does its own part and then all have all of it, so
that between two such places they hold the same numbers. A process alone is the same with nothing to exchange.

Whoever fails says so before it ends (`Processes.failing`), and the others, which look for that once a second and while they
wait, end with the same error. One that was killed closes its connections, or gives no sign of life for `SILENCE` seconds.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import Interrupted, LoraclrError

T = TypeVar("T")
#: seconds between two looks at the others, and between two signs of life; without one for so long a process is taken for dead;
#: for so long one that fails waits until all have heard of it
BEAT, SILENCE, HEARD = 1.0, 20.0, 10.0
#: after which torch itself gives up: one process may record for hours before the others have done
_PATIENCE = timedelta(days=7)
#: bytes of gradients that are summed at a time
_BUCKET = 64 << 20
#: what an error is called -> what the others raise
_SAME = {"LoraclrError": LoraclrError, "Interrupted": Interrupted, "KeyboardInterrupt": KeyboardInterrupt}


class Processes:
    """A process that is alone; and what those of a group can do.

    Attributes:
        rank, count: which of how many; 0 is the one that writes and talks
    """

    rank, count = 0, 1

    def each(self, number: int, make: Callable[[int], T], told: Callable[[int], None] = lambda place: None) -> list[T]:
        """What `make` makes of every number below `number`, each by one of the processes.

        Args:
            told: called for each that another process made, when it has come
        """
        mine = {place: make(place) for place in range(self.rank, number, self.count)}
        found = []
        for place in range(number):
            owner = place % self.count
            found.append(self.from_one(mine.pop(place, None), owner))
            if owner != self.rank:
                told(place)
        return found

    def from_one(self, value: T, owner: int = 0) -> T:
        """A value that one process has, in all of them; its tensors are on the CPU."""
        return value

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Make each tensor the sum of those of all processes, in place; they are contiguous."""

    def check(self) -> None:
        """Raises what another process failed with."""

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Inside, whatever goes wrong is told to the others."""
        yield

    def leave(self) -> None:
        """All is done, in all of them."""


ALONE = Processes()


class Group(Processes):
    """One of several processes, which torch's launcher (`torchrun`) started."""

    def __init__(self) -> None:
        """Meets the others where the launcher has put into the environment that they meet.

        Raises:
            LoraclrError: this torch is built without, or they do not come
        """
        from torch import distributed

        if not distributed.is_available():
            raise LoraclrError("This torch is built without torch.distributed: run the merge in one process.")
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            distributed.init_process_group(backend, timeout=_PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise LoraclrError(
                f"The processes do not find each other ({error}): start them with torchrun, which says where they meet."
            ) from error
        self._torch, self._store = distributed, distributed.distributed_c10d._get_default_store()
        self.rank, self.count = distributed.get_rank(), distributed.get_world_size()
        now = time.monotonic()
        self._looked, self._told = now, False
        self._beats = {rank: (0, now) for rank in range(self.count) if rank != self.rank}
        threading.Thread(target=self._beat, daemon=True).start()

    def from_one(self, value: T, owner: int = 0) -> T:
        own = owner == self.rank
        data = (
            torch.frombuffer(bytearray(pickle.dumps(value, pickle.HIGHEST_PROTOCOL)), dtype=torch.uint8)
            if own
            else None
        )
        size = torch.tensor([len(data) if own else 0])
        self._wait(lambda: self._torch.broadcast(size, owner, async_op=True))
        data = data if own else torch.empty(int(size), dtype=torch.uint8)
        self._wait(lambda: self._torch.broadcast(data, owner, async_op=True))
        return value if own else pickle.loads(data.numpy().data)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        pieces = [piece for tensor in tensors for piece in tensor.view(-1).split(_BUCKET // tensor.element_size())]
        bucket: list[Tensor] = []
        for place, piece in enumerate(pieces, start=1):
            bucket.append(piece)
            if place == len(pieces) or sum(one.nbytes for one in bucket) >= _BUCKET:
                flat = torch.cat(bucket)
                self._wait(lambda flat=flat: self._torch.all_reduce(flat, async_op=True))
                for one, own in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
                    one.copy_(own)
                bucket = []

    def check(self) -> None:
        now = time.monotonic()
        if now - self._looked < BEAT:
            return
        # who did not look for so long was stopped itself, perhaps with all others, and cannot tell how long they were silent
        stopped, self._looked = now - self._looked > SILENCE / 2, now
        try:
            self._hear()
            for rank, (beats, since) in self._beats.items():
                seen = self._store.add(f"loraclr/beat{rank}", 0)
                since = now if stopped or seen != beats else since
                self._beats[rank] = (seen, since)
                if now - since > SILENCE and seen < _ENDED:
                    raise _gone(rank, f"no sign of life for {SILENCE:.0f} seconds")
        except RuntimeError as error:  # the place where they meet is gone
            raise _gone(0, str(error)) from error

    @contextmanager
    def failing(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            with suppress(RuntimeError):
                self._tell(error)
            raise

    def leave(self) -> None:
        with suppress(RuntimeError):
            self._store.add(f"loraclr/beat{self.rank}", _ENDED)
            self._torch.destroy_process_group()

    def _wait(self, begin: Callable[[], Any]) -> None:
        """Until something that all take part in is done, or one of them has failed."""
        pause = 1e-5
        try:
            work = begin()
            while not work.is_completed():
                self.check()
                time.sleep(pause)
                pause = min(2 * pause, 2e-3)
            work.wait()
        except RuntimeError as error:
            # whoever closed the connection may have said why
            until = time.monotonic() + 2 * BEAT
            while time.monotonic() < until:
                with suppress(RuntimeError):
                    self._hear()
                time.sleep(0.1)
            raise _gone(None, str(error)) from error

    def _beat(self) -> None:
        """A sign of life, again and again."""
        with suppress(RuntimeError):
            while True:
                self._store.add(f"loraclr/beat{self.rank}", 1)
                time.sleep(BEAT)

    def _tell(self, error: BaseException) -> None:
        """Say what went wrong, unless that was heard from another; and wait until it is heard, since a launcher ends all when one
        ends."""
        if self._told:
            return
        self._told = True
        name = type(error).__name__
        if self._store.add("loraclr/failing", 1) > 1:  # another was first
            self._store.add("loraclr/heard", 1)
            return
        self._store.set("loraclr/failure", pickle.dumps((name, str(error), self.rank)))
        self._store.add("loraclr/failed", 1)
        until = time.monotonic() + HEARD
        while self._store.add("loraclr/heard", 0) < self.count - 1 and time.monotonic() < until:
            time.sleep(0.05)

    def _hear(self) -> None:
        """Raises what another process failed with."""
        if self._told or not self._store.add("loraclr/failed", 0):
            return
        name, text, rank = pickle.loads(self._store.get("loraclr/failure"))
        self._told = True
        self._store.add("loraclr/heard", 1)
        if name in _SAME:
            raise _SAME[name](text)
        raise LoraclrError(f"Process {rank} of the merge failed ({name}: {text}): see its own output.")


#: added to the signs of life of a process that ended well
_ENDED = 1 << 30


def _gone(rank: int | None, why: str) -> LoraclrError:
    who = "Another process" if rank is None else f"Process {rank}"
    reason = " ".join(why.split())[:200]
    return LoraclrError(f"{who} of the merge is gone ({reason}): see its own output, and whether it had memory enough.")
