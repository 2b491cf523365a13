"""The LoRAs that are installed in the WebUI, and the place of new ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from ...errors import LoraclrError, unknown_name
from ...files import Trigger, find_trigger
from ...model import REFINER, SD1, SD2, SDXL
from ...request import output_path
from . import modules

#: what belongs to a LoRA file beside it, and would be overwritten with it
SIDE_CARS = (".safetensors", ".json", ".png")


@dataclass(frozen=True)
class InstalledLora:
    """One of hundreds that the picker lists; what only the chosen ones are asked for is read when it is.

    Attributes:
    name: what the WebUI lists it by, the file's name without folder and extension
    alias: what the WebUI writes into a prompt
    path: the file
    family: by its tensors (`family_by_header`); where those leave it open SD1, SD2, SDXL or Unknown as the Lora tab has it, or
        SDXL refiner, which that does not know
    family_is_certain: whether its tensors told it
    problem: why the file cannot be read; empty where it can
    metadata: of the file, as the WebUI has them
    """

    name: str
    alias: str
    path: Path
    family: str
    family_is_certain: bool
    problem: str
    metadata: Mapping[str, Any] = field(repr=False)

    @property
    def trigger(self) -> str:
        """Of its card, its metadata, the captions it was trained on, or its name."""
        return self.found_trigger.words

    @property
    def trigger_is_guess(self) -> bool:
        """Whether nothing names the trigger words."""
        return self.found_trigger.is_guess

    @cached_property
    def found_trigger(self) -> Trigger:
        """The trigger words, with where they were found."""
        return find_trigger(self.path, self.texts)

    @cached_property
    def preview(self) -> Path | None:
        """Its picture."""
        return _preview(self.path)

    @property
    def licence(self) -> str:
        """As its metadata names it, or empty."""
        return self.texts.get("modelspec.license", "").strip()

    @cached_property
    def texts(self) -> dict[str, str]:
        """The metadata as files have them: the WebUI parses values that look like JSON objects."""
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in self.metadata.items()}
        # half of a pair of surrogates would end the answer to a browser in which it stands
        return {key: text.encode(errors="replace").decode() for key, text in texts.items()}

    @property
    def folder(self) -> str:
        """The sub-folder it is in, with "/" between parts; empty where it is in none."""
        for root in lora_dirs():
            if self.path.is_relative_to(root):
                return self.path.parent.relative_to(root).as_posix().removeprefix(".")
        return ""

    def obstacle(self, family: str) -> str | None:
        """Why it cannot be merged on a checkpoint of `family`, or None."""
        if self.path.suffix.lower() != ".safetensors":
            return f"{self.path.suffix} files are not read: convert it to .safetensors"
        if self.problem:
            return self.problem
        # the Lora tab lists a refiner's LoRA as the base's
        possible = {family, "Unknown", *((REFINER.webui_version,) if family == REFINER.name else ())}
        if self.family not in ({family} if self.family_is_certain else possible):
            return f"made for {self.family}, the loaded checkpoint is {family}"
        return None


def installed_loras(*, rescan: bool = False) -> list[InstalledLora]:
    """Every LoRA the WebUI knows, by name.

    Args:
        rescan: look at the folders again first

    Raises:
        LoraclrError: the built-in extension Lora is switched off
    """
    networks = modules.lora_extension()
    if rescan:
        networks.list_available_networks()
    return [
        _describe(entry) for _, entry in sorted(networks.available_networks.items(), key=lambda item: item[0].lower())
    ]


def find_lora(name: str) -> InstalledLora:
    """One LoRA by the name or alias a prompt would use; never by a path.

    Raises:
        LoraclrError: there is none of that name
    """
    networks = modules.lora_extension()
    entry = _entry(networks, name)
    if entry is None:
        # a file that was put there since the last look, as when a prompt names it
        networks.list_available_networks()
        entry = _entry(networks, name)
    if entry is None:
        raise unknown_name("installed LoRA", name, networks.available_networks)
    return _describe(entry)


def _entry(networks: ModuleType, name: str) -> Any:
    """What a prompt with this name would load (`networks.load_networks`), or None."""
    ambiguous = name.lower() in networks.forbidden_network_aliases
    return (networks.available_networks if ambiguous else networks.available_network_aliases).get(name)


def _describe(entry: Any) -> InstalledLora:
    path = Path(entry.filename)
    by_tensors, problem = _looked_at(path)
    return InstalledLora(
        name=entry.name,
        alias=entry.get_alias(),
        path=path,
        family=by_tensors or _listed_family(entry, path),
        family_is_certain=by_tensors is not None,
        problem=problem,
        metadata=entry.metadata if isinstance(entry.metadata, Mapping) else {},
    )


#: what Forge Neo's cards call the families
_NEO_FAMILIES = {"sd": SD1.name, "xl": SDXL.name}


def _listed_family(entry: Any, path: Path) -> str:
    """As the Lora tab has it: what the user entered on the card, else what the metadata say. It has no refiner."""
    entered = _card(path).get("sd version")
    version = getattr(entry, "sd_version", None)
    if version is None:  # Forge Neo, which only goes by what was entered
        listed = _NEO_FAMILIES.get(entered) or _family_by_metadata(entry.metadata)
    else:
        known = isinstance(entered, str) and entered in type(version).__members__
        listed = entered if known else version.name
    made_for_refiner = str(entry.metadata.get("ss_base_model_version", "")) == REFINER.base_model_version
    return REFINER.name if made_for_refiner and listed == REFINER.webui_version else listed


def _family_by_metadata(metadata: Mapping[str, Any]) -> str:
    """As the other WebUIs tell it (`network.NetworkOnDisk`)."""
    base = str(metadata.get("ss_base_model_version", ""))
    if base.startswith("sdxl_"):
        return SDXL.name
    if str(metadata.get("ss_v2", "")) == "True":
        return SD2.name
    return SD1.name if base.startswith(SD1.base_model_version) else "Unknown"


def _looked_at(path: Path) -> tuple[str | None, str]:
    """The family that its header tells, and why it cannot be read; remembered until the file changes."""

    def read() -> dict[str, str | None]:
        # here, as it brings every kind of network with it, and the WebUI's start need not wait for them
        from ...files import family_by_header

        try:
            return {"family": family_by_header(path), "problem": ""}
        except LoraclrError as error:
            if isinstance(error.__cause__, OSError):  # may be over in a moment
                raise error.__cause__ from error
            return {"family": None, "problem": str(error).replace(f"{path} ", "the file ", 1).removesuffix(".")}

    if path.suffix.lower() != ".safetensors":
        return None, ""
    try:
        found = modules.module("cache").cached_data_for_file("loraclr-header", str(path), str(path), read)
    except OSError as error:  # gone since the WebUI looked, or of somebody else
        return None, f"the file cannot be read ({error.strerror or error})"
    return found["family"], found["problem"]


def _card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.with_suffix(".json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return card if isinstance(card, dict) else {}


def _preview(path: Path) -> Path | None:
    return next(iter(previews(path)), None)


def previews(path: Path) -> list[Path]:
    """Every picture that the WebUI could show on a LoRA's card."""
    extensions = sorted(modules.module("ui_extra_networks").allowed_preview_extensions())
    possible = [path.with_suffix(f"{middle}.{extension}") for extension in extensions for middle in ("", ".preview")]
    return [candidate for candidate in possible if candidate.is_file()]


def lora_dir() -> Path:
    """The folder that new LoRAs go to."""
    return Path(modules.module("shared").cmd_opts.lora_dir)


def lora_dirs() -> list[Path]:
    """Every folder the WebUI takes LoRAs from."""
    options = modules.module("shared").cmd_opts
    others = (getattr(options, "lyco_dir_backcompat", None), *(getattr(options, "lora_dirs", None) or ()))
    return [Path(folder) for folder in (options.lora_dir, *others) if folder]


def free_name(wanted: str, sub_folder: str = "") -> str:
    """`wanted`, or `wanted-2`, `wanted-3`, …: a name (with its sub-folder) that nothing has yet.

    The WebUI knows LoRAs by the file's name alone, so one in another folder takes the name as well.

    Raises:
        LoraclrError: a name or sub-folder that no file may have
    """
    networks = modules.lora_extension()
    taken = {name.lower() for name in (*networks.available_networks, *networks.available_network_aliases)}
    number = 1
    while True:
        name = wanted if number == 1 else f"{wanted}-{number}"
        whole = f"{sub_folder.strip('/')}/{name}" if sub_folder.strip("/") else name
        path = output_path(lora_dir(), whole)
        if name.lower() not in taken and not any(path.with_suffix(suffix).exists() for suffix in SIDE_CARS):
            return whole
        number += 1


def announce(path: Path, forget: Callable[[str], None], *, lock_held: bool = False) -> InstalledLora:
    """Make the WebUI take notice of a LoRA that was written or overwritten.

    Without this an overwritten one goes on giving its old picture: layers and the cache of encoded prompts compare names
    only.

    Args:
        forget: drops every copy of a LoRA's old content, given its name; that is the host's affair
        lock_held: the caller holds `queue_lock`

    Raises:
        LoraclrError: the file is not in a folder that the WebUI lists
    """
    if lock_held:
        forget(path.stem)
    else:
        with modules.module("call_queue").queue_lock:
            forget(path.stem)
    networks = modules.lora_extension()
    networks.list_available_networks()
    entry = networks.available_networks.get(path.stem)
    if entry is None or Path(entry.filename).resolve() != path.resolve():
        raise LoraclrError(
            f"The WebUI does not list {path}: another LoRA has the same name in another folder, or the folder is not one of "
            f"its LoRA folders ({lora_dir()})."
        )
    return _describe(entry)
