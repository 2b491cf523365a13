"""A merge as files: a LoRA, whole deltas or a checkpoint, and the WebUI's card. Nothing is kept until it is asked for."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

import torch

from .. import __version__
from ..errors import LoraclrError
from ..files import (
    CREDITS,
    Terms,
    Written,
    credit,
    credit_lines,
    refuse_existing,
    require_space,
    serialize,
    tag_frequency,
    with_hashes,
    write_files,
    write_tensors,
)
from ..request import MergeRequest
from .baking import BakedCheckpoint, require_copyable
from .merged import Merge
from .merged_tensors import full_tensors, lora_tensors

if TYPE_CHECKING:
    from PIL.Image import Image

_RECIPE, _BEGUN = "loraclr.request", "loraclr.begun"
#: what stands beside a merge, and belongs to it
BESIDE = (".json", ".png", ".report.json", ".report.png")


def lora_metadata(merge: Merge, name: str) -> dict[str, str]:
    """Metadata by which the WebUI lists the file rightly, and from which the merge can be repeated."""
    merged_tags: dict[str, Counter[str]] = {}
    for lora in merge.inputs:
        for tag_folder, tags in tag_frequency(lora.file.metadata).items():
            merged_tags.setdefault(tag_folder, Counter()).update(tags)
    metadata = {
        **merge.target.family.metadata(merge.target.prediction_type),
        "ss_output_name": name,
        **_network(merge),
        # merged again, it is recorded as it was the first time
        "ss_clip_skip": str(merge.target.clip_skip or ""),
        "ss_training_comment": f"merged by LoRACLR {__version__} ({merge.request.method})",
        "ss_tag_frequency": json.dumps(merged_tags, ensure_ascii=False) if merged_tags else "",
        **_told(merge, name, [lora.file.metadata for lora in merge.inputs]),
    }
    return {key: value for key, value in metadata.items() if value}


def _network(merge: Merge) -> dict[str, str]:
    """What kind of network it is, in the words of the program that made this kind: kohya's trainer or LyCORIS."""
    if merge.request.save_as == "full":
        return {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps({"algo": "full"})}
    ranks: dict[bool, list[int]] = {True: [], False: []}
    for key, factors in merge.factors.items():
        shape = merge.target.shapes[key]
        if len(shape) > 1:
            ranks[math.prod(shape[2:]) > 1].append(factors.rank)
    kernels, points = ranks[True], ranks[False]
    rank = max(points or kernels or [1])
    told = {"ss_network_dim": str(rank), "ss_network_alpha": str(float(rank))}
    if not kernels:
        return {"ss_network_module": "networks.lora", **told}
    arguments = {"algo": "locon", "conv_dim": str(max(kernels)), "conv_alpha": str(float(max(kernels)))}
    return {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps(arguments), **told}


def checkpoint_metadata(merge: Merge, name: str, base: Mapping[str, str]) -> dict[str, str]:
    """Metadata of a checkpoint with the merge in it.

    Args:
        base: the metadata of the checkpoint that was copied; kept, but for what was said of its content
    """
    stale = (_BEGUN, "sshs_", "modelspec.hash", "modelspec.thumbnail", "modelspec.date")
    kept = {key: value for key, value in base.items() if not key.startswith(stale)}
    known = {name: kept[name] for name in ("modelspec.architecture",) if name in kept}
    own = {
        **merge.target.family.modelspec(merge.target.prediction_type),
        **known,
        **_told(merge, name, [base, *(lora.file.metadata for lora in merge.inputs)]),
    }
    own["modelspec.merged_from"] = f"{PurePosixPath(own['loraclr.checkpoint']).stem}, {own['modelspec.merged_from']}"
    return {**kept, **{key: value for key, value in own.items() if value}}


def _told(merge: Merge, name: str, sources: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What every file says of itself.

    Args:
        sources: metadata of all that it was made from, for their authors and licences
    """
    request = merge.request
    concepts = request.concepts
    terms = [Terms.of(metadata) for metadata in sources]
    licences = sorted({known.licence or "not named" for known in terms})
    authors = dict.fromkeys(known.author for known in terms if known.author)
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": name,
        "modelspec.trigger_phrase": ", ".join(concept.trigger for concept in concepts if concept.trigger),
        "modelspec.license": "" if licences == ["not named"] else " / ".join(licences),
        "modelspec.author": ", ".join(authors),
        "modelspec.merged_from": ", ".join(concept.label for concept in concepts),
        CREDITS: json.dumps(_credits(merge), ensure_ascii=False),
        _RECIPE: json.dumps(_recipe(request), ensure_ascii=False),
        "loraclr.inputs": json.dumps({c.label: lora.file.hash for c, lora in zip(concepts, merge.inputs, strict=True)}),
        _BEGUN: json.dumps(dataclasses.asdict(merge.begun)) if merge.begun else "",
        "loraclr.checkpoint": PurePosixPath(merge.target.checkpoint.replace("\\", "/")).name,
        "loraclr.source": merge.report.source,
        "loraclr.versions": json.dumps({"loraclr": __version__, "torch": torch.__version__, "host": merge.target.host}),
    }


def _credits(merge: Merge) -> dict[str, dict[str, object]]:
    """Label -> author, licence and, of what is a merge itself, whom that was made from."""
    return {lora.concept.label: credit(lora.file.metadata) for lora in merge.inputs}


def _recipe(request: MergeRequest) -> dict:
    """The request without this machine's folders: they are nobody's business, and mean nothing elsewhere."""
    named = [dataclasses.replace(c, lora=Path(c.lora.replace("\\", "/")).name) for c in request.concepts]
    return dataclasses.replace(request, concepts=tuple(named)).to_dict()


def read_recipe(metadata: Mapping[str, str], source: str) -> tuple[MergeRequest, dict[str, str]]:
    """The request a merged file was made from, and the hashes of its inputs by label.

    Raises:
        LoraclrError: the file holds no recipe, or one that cannot be read
    """
    if _RECIPE not in metadata:
        raise LoraclrError(f"{source} holds no LoRACLR recipe: name a file that LoRACLR merged.")
    try:
        hashes = json.loads(metadata.get("loraclr.inputs", "{}"))
        if not (isinstance(hashes, dict) and all(isinstance(digest, str) for digest in hashes.values())):
            raise ValueError("loraclr.inputs is no list of hashes")
        return MergeRequest.from_json(metadata[_RECIPE]), hashes
    except (LoraclrError, ValueError, RecursionError) as error:
        raise LoraclrError(
            f"The recipe in {source} cannot be read ({str(error).rstrip('.')}): it was changed since, or is of a newer LoRACLR."
        ) from None


def went_on(metadata: Mapping[str, str]) -> bool:
    """Whether a merged file went on from a finished merge, so that its recipe alone cannot repeat it."""
    return _BEGUN in metadata


def first_concepts(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Of a merged file that went on from a finished merge, the concepts of that, in their order; else none."""
    try:
        labels = json.loads(metadata.get(_BEGUN, "{}")).get("concepts", [])
    except (ValueError, RecursionError, AttributeError):  # changed by somebody: an order that is lost costs time alone
        return ()
    return tuple(label for label in labels if isinstance(label, str)) if isinstance(labels, list) else ()


def user_card(merge: Merge) -> dict[str, object]:
    """`NAME.json` as the WebUI's metadata editors write it (`modules/ui_edit_user_metadata.py` and those that extend it)."""
    report = merge.report
    outfits = [concept.outfits for concept in merge.request.concepts]
    lines = [
        f"{c.name}: {' or '.join([c.trigger or 'no trigger', *others])}"
        for c, others in zip(report.concepts, outfits, strict=True)
    ]
    made_from = "\n".join(["Made from:", *credit_lines(_credits(merge)), f"Seed: {merge.request.seed}"])
    # a setting of the WebUI has it show descriptions as HTML, and trigger words are a stranger's
    said = f"Merged by LoRACLR: {'; '.join(lines)}".translate({ord("<"): "‹", ord(">"): "›"})
    card = {"description": said, "notes": f"{report.table()}\n\n{made_from}"}
    if merge.request.save_as == "checkpoint":
        return card
    return {
        **card,
        "sd version": merge.target.family.webui_version,
        "activation text": ", ".join(c.trigger for c in report.concepts if c.trigger),
        "preferred weight": 1.0,
        "negative text": "",
    }


def check_destination(path: Path, save_as: str, checkpoint: Path | None, *, overwrite: bool = False) -> None:
    """Refuse before a merge what would be refused after it.

    Args:
        checkpoint: that the merge is made on, if that is known

    Raises:
        LoraclrError: a file of that name exists, it is the checkpoint itself, the checkpoint cannot be copied, or there is
            too little room for it
    """
    config = (".yaml",) if save_as == "checkpoint" else ()
    for suffix in (".safetensors", *BESIDE, *config):
        refuse_existing(path.with_suffix(suffix), overwrite=overwrite)
    if checkpoint is None or not checkpoint.exists():
        return
    if path.exists() and path.samefile(checkpoint):
        raise LoraclrError(f"{path} is the checkpoint itself, which is never written to: choose another name.")
    if save_as == "checkpoint":
        require_copyable(checkpoint)
        require_space(path, checkpoint.stat().st_size)


def save_merge(
    merge: Merge,
    path: Path,
    *,
    preview: Image | None = None,
    sheet: Image | None = None,
    with_report: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Write the file, its card, and what else was asked for: all of them or none. What they replace is gone.

    Args:
        preview: the card's picture
        sheet: a picture to judge the merge by, as `NAME.report.png`
        with_report: whether what is known of the merge is written as `NAME.report.json`

    Raises:
        LoraclrError: one of the files exists and may not be overwritten, it is the checkpoint itself, there is no room, or it
            cannot be written
    """
    drawn = {"preview": preview, "sheet": sheet}
    written = write_merge(merge, path, **drawn, with_report=with_report, overwrite=overwrite)
    written.forget()
    return list(written.paths)


def write_merge(
    merge: Merge,
    path: Path,
    *,
    preview: Image | None = None,
    sheet: Image | None = None,
    with_report: bool = False,
    overwrite: bool = False,
    stale: Sequence[Path] = (),
) -> Written:
    """The same, with what was replaced set aside: it can be put back, or let go of.

    Args:
        stale: pictures and the like of what is replaced, which would belong to nothing after it; those that a merge writes
            beside itself are known

    Returns:
        what was written, the file itself first, and what it replaced

    Raises:
        LoraclrError: as `save_merge`
    """
    check_destination(path, merge.request.save_as, merge.target.path, overwrite=overwrite)
    card = json.dumps(user_card(merge), indent=4, ensure_ascii=False).encode()
    writers = {path: _writer(merge, path), path.with_suffix(".json"): lambda stream: stream.write(card)}
    config = merge.target.path.with_suffix(".yaml")
    if merge.request.save_as == "checkpoint" and config.is_file():
        writers[path.with_suffix(".yaml")] = lambda stream: stream.write(config.read_bytes())
    if preview is not None:
        writers[path.with_suffix(".png")] = lambda stream: preview.save(stream, format="PNG")
    if sheet is not None:
        writers[path.with_suffix(".report.png")] = lambda stream: sheet.save(stream, format="PNG")
    if with_report:
        text = merge.report.to_json().encode()
        writers[path.with_suffix(".report.json")] = lambda stream: stream.write(text)
    beside = (path.with_suffix(suffix) for suffix in BESIDE)
    return write_files(writers, overwrite=overwrite, stale=(*beside, *stale))


def _writer(merge: Merge, path: Path) -> Callable[[BinaryIO], object]:
    """What writes the file itself."""
    if merge.request.save_as == "lora":
        tensors = lora_tensors(merge)
        blob = serialize(tensors, with_hashes(tensors, lora_metadata(merge, path.stem)))
        return lambda stream: stream.write(blob)
    if merge.request.save_as == "full":
        whole, told = full_tensors(merge), lora_metadata(merge, path.stem)
        require_space(path, sum(tensor.size for tensor in whole))
        return lambda stream: write_tensors(stream, whole, lambda digest: {**told, "sshs_model_hash": digest})
    baked = _baked(merge)
    told = checkpoint_metadata(merge, path.stem, baked.metadata)
    hash_of = "modelspec.hash_sha256"
    return lambda stream: write_tensors(stream, baked.tensors, lambda digest: {**told, hash_of: f"0x{digest}"})


def _baked(merge: Merge) -> BakedCheckpoint:
    deltas = {key: factors.to("cpu") for key, factors in merge.factors.items()}
    return BakedCheckpoint(merge.target.path, deltas, merge.request.memory_mb)


def file_size(merge: Merge) -> int:
    """Of the file in bytes, without its header."""
    if merge.request.save_as == "checkpoint":
        return _baked(merge).size
    if merge.request.save_as == "full":
        return sum(tensor.size for tensor in full_tensors(merge))
    return sum(tensor.numel() * tensor.element_size() for tensor in lora_tensors(merge).values())
