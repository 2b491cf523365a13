"""The merged LoRA as files: tensors, metadata, the WebUI's card. Nothing is kept until it is asked for."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import __version__
from .errors import LoraclrError
from .hosts.base import Host
from .lora_files import PRECISIONS, serialize, with_hashes, write_files
from .merge import Merge
from .prompts import tag_frequency
from .request import MergeRequest

if TYPE_CHECKING:
    from PIL.Image import Image

_RESERVED = re.compile(r"^(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?$", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[\x00-\x1f<>:"|?*\\]')
_RECIPE = "loraclr.request"
#: of a name's part: file systems take 255, and temporary files and reports have longer names than the LoRA
MOST_BYTES = 200


def output_path(folder: Path, name: str) -> Path:
    """Where a merge called `name` goes inside `folder`; sub-folders are allowed, leaving the folder is not.

    Args:
        name: with or without `.safetensors`, parts separated by "/"

    Raises:
        LoraclrError: the name leaves the folder, has characters that file systems or prompts reserve, or is empty
    """
    stem = name[: -len(".safetensors")] if name.lower().endswith(".safetensors") else name
    problem = f"The output name {name!r}"
    if PureWindowsPath(stem).is_absolute() or PureWindowsPath(stem).drive or PurePosixPath(stem).is_absolute():
        raise LoraclrError(f"{problem} is a path of its own: give a name inside {folder}.")
    for part in stem.split("/"):
        if part in ("", ".", ".."):
            raise LoraclrError(f"{problem} leaves {folder} or has an empty part: give a name like my-merge.")
        if _FORBIDDEN.search(part) or _RESERVED.match(part) or part != part.strip() or part.endswith("."):
            raise LoraclrError(
                f"{problem} has characters that file names or prompts reserve: use letters, digits, - and _."
            )
        if len(part.encode()) > MOST_BYTES:
            raise LoraclrError(f"{problem} is too long: give one of at most {MOST_BYTES} bytes.")
    path = folder / f"{stem}.safetensors"
    if not path.resolve().is_relative_to(folder.resolve()):
        raise LoraclrError(f"{problem} leads outside {folder} through a link: choose another sub-folder.")
    return path


def lora_tensors(merge: Merge, host: Host) -> dict[str, Tensor]:
    """The tensors of the file in kohya's key style, `alpha` equal to the rank, embeddings of the inputs passed through.

    Per layer: `lora_up.weight` `[d_out, r]` or `[d_out, r, 1, 1]`, `lora_down.weight` `[r, d_in]` or `[r, c_in, k, k]`,
    `alpha` `[]`.

    Raises:
        LoraclrError: two inputs bundle different embeddings of one name
    """
    dtype = PRECISIONS[merge.request.precision]
    layers, tensors = host.layers(), {}
    for key, factors in merge.factors.items():
        up, down = factors.up.cpu().to(dtype), factors.down.cpu().to(dtype)
        weight = layers[key].weight
        if weight.dim() == 4:
            up, down = up[:, :, None, None], down.reshape(-1, *weight.shape[1:])
        tensors[f"{key}.lora_up.weight"] = up.contiguous()
        tensors[f"{key}.lora_down.weight"] = down.contiguous()
        alpha = torch.tensor(float(factors.rank))
        # fp16 has no 2049 and bf16 no 257; an alpha that is rounded would scale the whole layer
        tensors[f"{key}.alpha"] = alpha.to(dtype) if float(alpha.to(dtype)) == factors.rank else alpha
    for given in merge.inputs:
        for key, tensor in given.file.embeddings.items():
            if key in tensors and not torch.equal(tensors[key], tensor):
                raise LoraclrError(
                    f"{given.concept.label} bundles an embedding that another LoRA bundles with other content ({key}): "
                    "leave one of them out."
                )
            tensors[key] = tensor
    return tensors


def lora_metadata(merge: Merge, host: Host, name: str) -> dict[str, str]:
    """Metadata by which the WebUI lists the file rightly, and from which the merge can be repeated."""
    request = merge.request
    ranks = [factors.rank for factors in merge.factors.values()]
    concepts = request.concepts
    triggers = ", ".join(concept.trigger for concept in concepts if concept.trigger)
    licences = sorted({given.file.metadata.get("modelspec.license", "") or "not named" for given in merge.inputs})
    merged_tags: dict[str, Counter[str]] = {}
    for given in merge.inputs:
        for tag_folder, tags in tag_frequency(given.file.metadata).items():
            merged_tags.setdefault(tag_folder, Counter()).update(tags)
    metadata = {
        "ss_base_model_version": host.family.base_model_version,
        "ss_v2": str(host.family.name == "SD2"),
        "ss_output_name": name,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(max(ranks)),
        "ss_network_alpha": str(float(max(ranks))),
        "ss_training_comment": f"merged by LoRACLR {__version__} ({request.method})",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": host.family.architecture,
        "modelspec.title": name,
        "modelspec.trigger_phrase": triggers,
        "modelspec.license": "" if licences == ["not named"] else " / ".join(licences),
        "modelspec.merged_from": ", ".join(concept.label for concept in concepts),
        "ss_tag_frequency": json.dumps(merged_tags, ensure_ascii=False) if merged_tags else "",
        _RECIPE: json.dumps(_recipe(request), ensure_ascii=False),
        "loraclr.inputs": json.dumps(
            {c.label: given.file.hash for c, given in zip(concepts, merge.inputs, strict=True)}
        ),
        "loraclr.checkpoint": PurePosixPath(host.checkpoint.replace("\\", "/")).name,
        "loraclr.source": merge.report.source,
        "loraclr.versions": json.dumps({"loraclr": __version__, "torch": torch.__version__, "host": host.name}),
    }
    return {key: value for key, value in metadata.items() if value}


def _recipe(request: MergeRequest) -> dict:
    """The request without this machine's folders: they are nobody's business, and mean nothing elsewhere."""
    named = [dataclasses.replace(c, lora=Path(c.lora.replace("\\", "/")).name) for c in request.concepts]
    return dataclasses.replace(request, concepts=tuple(named)).to_dict()


def read_recipe(metadata: Mapping[str, str], source: str) -> tuple[MergeRequest, dict[str, str]]:
    """The request a merged file was made from, and the hashes of its inputs by label.

    Raises:
        LoraclrError: the file holds no recipe
    """
    if _RECIPE not in metadata:
        raise LoraclrError(f"{source} holds no LoRACLR recipe: name a file that LoRACLR merged.")
    return MergeRequest.from_json(metadata[_RECIPE]), json.loads(metadata.get("loraclr.inputs", "{}"))


def user_card(merge: Merge, host: Host) -> dict[str, object]:
    """`NAME.json` as the WebUI's metadata editor writes it (`modules/ui_edit_user_metadata.py`)."""
    report = merge.report
    lines = [f"{c.name}: {c.trigger or 'no trigger'}" for c in report.concepts]
    return {
        "description": "Merged by LoRACLR: " + "; ".join(lines),
        "sd version": host.family.name,
        "activation text": ", ".join(c.trigger for c in report.concepts if c.trigger),
        "preferred weight": 1.0,
        "negative text": "",
        "notes": report.table(),
    }


def save_merge(
    merge: Merge,
    host: Host,
    path: Path,
    *,
    preview: Image | None = None,
    with_report: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Write the LoRA, its card, and what else was asked for: all of them or none.

    Raises:
        LoraclrError: one of the files exists and may not be overwritten, or cannot be written
    """
    tensors = lora_tensors(merge, host)
    blob = serialize(tensors, with_hashes(tensors, lora_metadata(merge, host, path.stem)))
    card = json.dumps(user_card(merge, host), indent=4, ensure_ascii=False).encode()
    writers = {path: lambda stream: stream.write(blob), path.with_suffix(".json"): lambda stream: stream.write(card)}
    if preview is not None:
        writers[path.with_suffix(".png")] = lambda stream: preview.save(stream, format="PNG")
    if with_report:
        text = merge.report.to_json().encode()
        writers[path.with_suffix(".report.json")] = lambda stream: stream.write(text)
    write_files(writers, overwrite=overwrite)
    return list(writers)
