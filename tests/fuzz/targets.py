"""What is fuzzed: what reads the writing of strangers. A target takes any bytes, and may refuse them only with a clear error."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch

from lib_loraclr.doors.webui import catalogue, history_log
from lib_loraclr.errors import LoraclrError
from lib_loraclr.files.adapter_config import stated_alphas
from lib_loraclr.files.licences import CREDITS, conditions, credit, credit_lines
from lib_loraclr.files.lora_family import family_by_header
from lib_loraclr.files.lora_files import read_lora
from lib_loraclr.files.tensor_files import read_header
from lib_loraclr.files.training import clip_skip, few_steps
from lib_loraclr.files.triggers import find_trigger, tag_frequency
from lib_loraclr.output.saving import first_concepts, read_recipe
from lib_loraclr.request.merge_request import MergeRequest
from lib_loraclr.request.output_names import output_path
from lib_loraclr.solving.methods import Procedure

#: one folder for a process; a file in it is written anew for each input
_FOLDER = Path(tempfile.mkdtemp(prefix=f"loraclr-fuzz-{os.getpid()}-"))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def header(data: bytes) -> None:
    """A file's bytes: its header, its family, and the whole of it."""
    path = _FOLDER / "file.safetensors"
    path.write_bytes(data)
    for read in (read_header, family_by_header, read_lora):
        try:
            read(path)
        except LoraclrError as error:
            assert str(path) in str(error), "the error names the file"


def metadata(data: bytes) -> None:
    """A file's `__metadata__` as the header's JSON: texts by names."""
    values = _strings(data)
    trigger = find_trigger(_FOLDER / "some-name.safetensors", values)
    assert trigger.words and isinstance(trigger.words, str)
    assert all(count > 0 for tags in tag_frequency(values).values() for count in tags.values())
    assert 0 <= clip_skip(values) <= 12
    few_steps("name", values)
    told = credit(values)
    assert all("\n" not in line for line in (*conditions("fox", values), *credit_lines({"fox": told})))
    assert credit({CREDITS: json.dumps({"fox": told})}).get("made_from", {}).keys() <= {"fox"}
    assert all(isinstance(label, str) for label in first_concepts(values))
    try:
        request, hashes = read_recipe(values, "file")
    except LoraclrError as error:
        assert "file" in str(error)
    else:
        assert request.concepts is not None and all(isinstance(digest, str) for digest in hashes.values())


def _strings(data: bytes) -> dict[str, str]:
    """Lines `name=value`, as a header would give them; a fuzzer finds its way in those sooner than in JSON inside JSON."""
    pairs = (line.partition("=") for line in _text(data).split("\n"))
    return {name: value for name, sign, value in pairs if sign}


def card(data: bytes) -> None:
    """The WebUI's card beside a file."""
    path = _FOLDER / "with-card.safetensors"
    path.with_suffix(".json").write_bytes(data)
    assert find_trigger(path, {}).words


def adapter(data: bytes) -> None:
    """`adapter_config.json` of PEFT, and diffusers' settings in the metadata."""
    names = {"lora_unet_mid_block_x_to_k": "unet.mid_block.x.to_k.lora_A.weight"}
    layers = {key: {"lora_down.weight": torch.ones(4, 8), "lora_up.weight": torch.ones(8, 4)} for key in names}
    path = _FOLDER / "peft" / "adapter_model.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.with_name("adapter_config.json").write_bytes(data)
    for told in ({}, {"lora_adapter_metadata": _text(data)}):
        try:
            found = stated_alphas(layers, names, told, path, peft=True)
        except LoraclrError as error:
            assert "strength" in str(error)
        else:
            assert all(bool(alpha.isfinite()) for alpha in found.values())


def request(data: bytes) -> None:
    """A merge request in JSON, as HTTP and `--request` take it."""
    try:
        asked = MergeRequest.from_json(_text(data))
        asked.check()
        Procedure.of(asked)
        again = MergeRequest.from_json(json.dumps(asked.to_dict()))
    except LoraclrError:
        return
    assert again == asked, "what is accepted can be written into a file and read again"
    assert json.dumps(asked.to_dict(), ensure_ascii=False).encode(), "and into a LoRA's metadata, which are UTF-8"


def history(data: bytes) -> None:
    """The log of the merges, which people edit and newer versions write."""
    try:
        entries = history_log.read(_text(data))
    except ValueError:
        return
    for entry in entries:
        assert time.localtime(entry.date) and all(share is None or f"{share:.0%}" for share in entry.figures.values())
        try:
            entry.request().check()
        except LoraclrError:
            continue
    assert history_log.read(history_log.write(entries)) == entries


def prompt(data: bytes) -> None:
    """txt2img's prompt, from which tags and words are taken over."""
    found = SimpleNamespace(name="fox", trigger="sks animal")
    catalogue.find_lora = lambda name: found
    concepts, words, unknown = catalogue.from_prompt(_text(data))
    assert all(isinstance(text, str) for text in (words, *unknown)) and len(concepts) <= 1
    catalogue.without(words, ("sks animal", "a, b"))


def name(data: bytes) -> None:
    """A name for the file, as a person writes it."""
    try:
        path = output_path(_FOLDER, _text(data))
    except LoraclrError:
        return
    assert path.resolve().is_relative_to(_FOLDER.resolve()) and path.suffix == ".safetensors"
    for part in path.relative_to(_FOLDER).parts:
        assert not set(part) & {"\x7f", "\x00", "\n", "\u202e"} and len(part.encode()) <= 255


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (header, metadata, card, adapter, request, history, prompt, name)
}
