"""Whatever goes wrong during a merge in a real WebUI, everything is as it was: one fault of each kind.

Needs what `test_real_webui.py` needs; where the page is closed or the WebUI reloaded, what `test_browser.py` needs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import RELOADING, go, install_link, missing
from safetensors.torch import load_file, save_file
from webui_process import WebUI, demo_models

NAMES = [["penguin", "ohwx bird"], ["pizza", "vbk food"]]
#: the one without tags last: `webui_faults.pictures`
PROMPTS = ["a ohwx bird <lora:penguin:0.8>", "a photo of a cat"]
#: kind of fault -> the state that the merge ends in, and a part of what is said
ENDS = {
    "the host raises in recording": ("failed", "an illegal memory access"),
    "the host raises in solving": ("failed", "an illegal memory access"),
    "the host raises in refining": ("failed", "an illegal memory access"),
    "the host raises in measuring": ("failed", "an illegal memory access"),
    "the host raises in drawing": ("finished", "There is no picture"),
    "the card is full in recording": ("failed", "The graphics memory ran out, and nothing was kept"),
    "the card is full in refining": ("finished", "too small to refine this merge"),
    "the RAM is full in solving": ("failed", "The computer's memory ran out, and nothing was kept"),
    "interrupted": ("interrupted", ""),
    "the checkpoint is switched": ("finished", ""),
    "a LoRA is replaced": ("finished", ""),
    "a LoRA is deleted": ("finished", ""),
}

pytestmark = pytest.mark.skipif(
    "LORACLR_WEBUI_DIR" not in os.environ, reason="LORACLR_WEBUI_DIR names no WebUI to test in"
)


class World:
    """A WebUI with this extension, and what is to be as it was.

    Attributes:
        survived: faults after which everything was as it was
    """

    def __init__(self, webui: WebUI) -> None:
        self.webui, self.survived = webui, 0
        assert webui.ask("ready").startswith("emoji-sd1")
        # what the WebUI itself keeps after its first picture, and a merge's first is no growth
        webui.ask("pictures", prompts=PROMPTS)
        assert webui.ask("let_fail", fault="nothing", names=NAMES)["state"] == "finished"
        self.pictures = webui.ask("pictures", prompts=PROMPTS)
        assert self.pictures[0] != self.pictures[1]
        self.before = webui.ask("look")
        assert self.before["lock free"]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.webui.port}/"

    def require_untouched(self, told: str) -> None:
        self.require_nothing_left(told)
        assert self.webui.ask("pictures", prompts=PROMPTS) == self.pictures, f"{told}: the next pictures are others"
        self.require_nothing_left(f"{told}, and two pictures")

    def require_nothing_left(self, told: str) -> None:
        found, before = self.webui.ask("look"), dict(self.before)
        assert found.pop("memory") <= 1.02 * before.pop("memory"), f"{told}: memory is not back"
        for name, value in before.items():
            assert found[name] == value, f"{told}: {name}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("faults")
    demo_models(folder)
    install_link(folder)
    checkpoints = folder / "models" / "Stable-diffusion"
    tensors = load_file(checkpoints / "emoji-sd1.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, checkpoints / "other.safetensors")
    shutil.copy(checkpoints / "emoji-sd1.yaml", checkpoints / "other.yaml")
    webui = WebUI(folder)
    try:
        yield World(webui)
    finally:
        webui.close()


@pytest.mark.parametrize("fault", ENDS)
def test_a_fault_of_each_kind_leaves_everything_as_it_was(world: World, fault: str) -> None:
    state, told = ENDS[fault]
    found = world.webui.ask("let_fail", fault=fault, names=NAMES)
    said = " ".join([found["error"], *found.get("warnings", ())])
    assert found["state"] == state and told in said, found
    if fault == "the checkpoint is switched":
        assert found["switched to"].startswith("other.safetensors"), "control: after the merge it was another"
    world.require_untouched(fault)
    world.survived += 1


def test_a_full_disk_at_keep_leaves_everything_as_it_was(world: World) -> None:
    found = world.webui.ask("fill_the_disk", names=NAMES)
    assert found["state"] == "finished" and "No space left on device" in found["error"], "and can be kept elsewhere"
    world.require_untouched("a full disk")
    world.survived += 1


@pytest.mark.skipif(bool(missing()), reason=missing() or "-")
@pytest.mark.parametrize(("way", "state"), [("leave", "finished"), ("restart", "interrupted")])
def test_a_page_that_is_closed_and_a_ui_that_is_reloaded_leave_everything_as_it_was(
    world: World, way: str, state: str
) -> None:
    world.webui.ask("spare")
    seen: dict[str, Any] = go(world.address, way, known=RELOADING)
    assert "%" in seen["bar"], "the merge ran"
    states = world.webui.ask("settle", seconds=1200)
    assert states[-1:] == [state] if way == "leave" else state not in states
    world.require_untouched(way)
    world.survived += 1


def test_faults_were_let_in(world: World, record_property: Callable[[str, object], None]) -> None:
    if not world.survived:
        pytest.skip("the tests that let them in were not chosen")
    record_property("faults injected and survived", world.survived)
    print(f"{world.survived} faults injected and survived")  # noqa: T201  (for `pytest -s`)


@pytest.mark.parametrize("what", ["hooks", "weights", "memory", "files"])
def test_what_is_left_behind_would_be_seen(world: World, what: str) -> None:
    """The control of the tests above."""
    world.webui.ask("leave_behind", what=what)
    with pytest.raises(AssertionError, match=what):
        world.require_nothing_left("control")
    world.webui.ask("take_back", what=what)
    world.require_nothing_left("nothing")
