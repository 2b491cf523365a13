"""How a process hears of the others, in a store made by hand; real processes are in `tests/merge/test_processes.py`."""

from __future__ import annotations

import pickle
import time
from types import SimpleNamespace

import pytest
import torch

from lib_loraclr.errors import Interrupted, LoraclrError
from lib_loraclr.model import processes
from lib_loraclr.model.processes import ALONE, Group


class Store:
    """What torch's store has of which this uses."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.values: dict[str, bytes] = {}

    def add(self, key: str, more: int) -> int:
        self.numbers[key] = self.numbers.get(key, 0) + more
        return self.numbers[key]

    def set(self, key: str, value: bytes) -> None:
        self.values[key] = value

    def get(self, key: str) -> bytes:
        return self.values[key]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time that goes on when somebody sleeps, and when a test says so."""
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    return clock


def member(rank: int, store: Store, *, count: int = 2) -> Group:
    group = object.__new__(Group)
    group.rank, group.count, group._store = rank, count, store
    group._looked, group._told = 0.0, False
    group._beats = {other: (0, 0.0) for other in range(count) if other != rank}
    return group


def test_a_process_alone_does_everything_itself() -> None:
    told = []
    assert ALONE.each(3, lambda k: k * k, told.append) == [0, 1, 4] and told == []
    tensor = torch.ones(2)
    ALONE.sum_([tensor])
    ALONE.check()
    assert tensor.tolist() == [1.0, 1.0] and ALONE.from_one("a") == "a"
    with pytest.raises(KeyError), ALONE.failing():
        raise KeyError


def test_a_process_without_a_sign_of_life_is_taken_for_dead_and_one_that_beats_is_not(clock: SimpleNamespace) -> None:
    store = Store()
    first = member(0, store)
    for _ in range(60):
        clock.now += 2
        store.add("loraclr/beat1", 1)
        first.check()
    for _ in range(int(processes.SILENCE // 2)):
        clock.now += 2
        first.check()
    clock.now += 2
    with pytest.raises(LoraclrError, match=r"Process 1 of the merge is gone \(no sign of life for 20 seconds\)"):
        first.check()


def test_a_process_that_was_stopped_itself_takes_nobody_for_dead(clock: SimpleNamespace) -> None:
    """A computer that sleeps stops all of them, and some wake up before others."""
    first = member(0, Store())
    clock.now += 2
    first.check()
    clock.now += 3600
    first.check()
    for _ in range(int(processes.SILENCE // 2)):
        clock.now += 2
        first.check()
    clock.now += 2
    with pytest.raises(LoraclrError, match="no sign of life"):
        first.check()


def test_a_process_that_ended_well_may_be_silent(clock: SimpleNamespace) -> None:
    store = Store()
    first, second = member(0, store), member(1, store)
    second._torch = SimpleNamespace(destroy_process_group=lambda: None)
    second.leave()
    for _ in range(20):
        clock.now += 10
        first.check()


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (LoraclrError("Give it a rest."), LoraclrError, r"^Give it a rest\.$"),
        (Interrupted(), Interrupted, "^$"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
        (ValueError("no such number"), LoraclrError, r"^Process 1 of the merge failed \(ValueError: no such number\)"),
    ],
)
def test_what_one_fails_with_the_others_raise(
    clock: SimpleNamespace, error: BaseException, raised: type[BaseException], said: str
) -> None:
    store = Store()
    first, second = member(0, store), member(1, store)
    with pytest.raises(type(error)), second.failing():
        raise error
    assert clock.now >= processes.HEARD, "it waits until the others have heard, who here are late"
    clock.now += 2
    with pytest.raises(raised, match=said):
        first.check()
    assert store.numbers["loraclr/heard"] == 1
    clock.now += 2
    first.check()  # told once


def test_only_the_first_failure_is_told(clock: SimpleNamespace) -> None:
    store = Store()
    first, second, third = (member(rank, store, count=3) for rank in range(3))
    with pytest.raises(LoraclrError, match="one"), first.failing():
        raise LoraclrError("one")
    before = clock.now
    with pytest.raises(LoraclrError, match="two"), second.failing():
        raise LoraclrError("two")
    assert clock.now == before, "nobody has to hear of that one"
    clock.now += 2
    with pytest.raises(LoraclrError, match="one"):
        third.check()
    assert pickle.loads(store.values["loraclr/failure"])[2] == 0


def test_a_place_to_meet_that_is_gone_is_said(clock: SimpleNamespace) -> None:
    def gone(*_: object) -> int:
        raise RuntimeError("Connection reset\n by peer")

    store = Store()
    store.add = gone
    clock.now = 5
    with pytest.raises(LoraclrError, match=r"Process 0 of the merge is gone \(Connection reset by peer\)"):
        member(1, store).check()


def test_looks_are_rare(clock: SimpleNamespace) -> None:
    """Progress is told at every evaluation, and each look is a message to another machine."""
    store = Store()
    first = member(0, store)
    clock.now = 5
    first.check()
    store.add = None
    clock.now += processes.BEAT / 2
    first.check()
    assert time.monotonic is not processes.time.monotonic, "control: the clock is the test's"
