"""The words that call a LoRA: from its card, its metadata, the captions it was trained on, or, as a guess, its name.

What is found is text for a prompt: tags and names come with their brackets escaped, as the WebUI reads plain brackets as weights.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..request import escaped, has_weights

#: metadata that name the words, in the order in which they are believed; lists too, as JSON
_NAMED = (
    *("modelspec.trigger_phrase", "trained_words", "ss_trained_words", "trainedWords"),
    *("trigger_words", "trigger_word", "ss_trigger_words"),
)
#: tags of nearly every caption, which call no concept by themselves
_COMMON = frozenset(
    [
        "1girl",
        "1boy",
        "1other",
        "2girls",
        "2boys",
        "girl",
        "boy",
        "woman",
        "man",
        "person",
        "people",
        "human",
        "female",
        "male",
        "lady",
        "guy",
        "child",
        "solo",
        "solo_focus",
        "no_humans",
        "multiple_girls",
        "multiple_boys",
        "portrait",
        "photo",
        "photograph",
        "picture",
        "image",
        "painting",
        "drawing",
        "art",
        "artwork",
        "illustration",
        "anime",
        "realistic",
        "photorealistic",
        "photo_(medium)",
        "traditional_media",
        "style",
        "masterpiece",
        "best_quality",
        "high_quality",
        "quality",
        "highres",
        "absurdres",
        "lowres",
        "simple_background",
        "white_background",
        "grey_background",
        "black_background",
        "gradient_background",
        "transparent_background",
        "looking_at_viewer",
        "upper_body",
        "full_body",
        "cowboy_shot",
        "close-up",
        "standing",
        "sitting",
        "smile",
        "blush",
        "open_mouth",
        "closed_mouth",
        "bangs",
        "long_hair",
        "short_hair",
        "medium_hair",
        "breasts",
        "large_breasts",
        "medium_breasts",
        "small_breasts",
        "outdoors",
        "indoors",
        "day",
        "night",
        "sky",
        "monochrome",
        "greyscale",
        "simple",
        "comic",
        "signature",
        "watermark",
        "dog",
        "cat",
        "animal",
        "a_woman",
        "a_man",
        "a_girl",
        "a_boy",
        "a_person",
        "a_photo_of_a_woman",
        "a_photo_of_a_man",
        "a_photo_of_a_person",
        "general",
        "safe",
        "rating:safe",
    ]
)
_TAG = re.compile(r"<\w+:[^<>]*>")


@dataclass(frozen=True)
class Trigger:
    """The words that call a LoRA.

    Attributes:
        words: as a prompt has them; never empty
        source: "card", "metadata", "tags" (of the captions) or "name" (of the file)
        is_guess: whether they may well be others: nothing names them
    """

    words: str
    source: str
    is_guess: bool

    def warning(self, label: str) -> str | None:
        """What a person should know of words that are a guess; None where they are none.

        Args:
            label: what the LoRA is called
        """
        if not self.is_guess:
            return None
        where = f"a tag of its captions ({self.words})" if self.source == "tags" else "its file name"
        return f"{label} names no trigger words: {where} is taken for them, which is a guess: correct them if need be."


def find_trigger(path: Path, metadata: Mapping[str, str]) -> Trigger:
    """The trigger words of a LoRA file; where nothing names any, its name as a guess.

    Args:
        path: of the file; the WebUI's card is asked for beside it
        metadata: of the file, strings as they are
    """
    card = without_networks(_activation_text(path))
    if card:
        return Trigger(card, "card", is_guess=False)  # the only one that is a prompt already
    for name in _NAMED:
        words = without_networks(_listed(metadata.get(name, "")))
        if words:
            return Trigger(words if _is_prompt(words) else escaped(words), "metadata", is_guess=False)
    return _from_tags(path, metadata) or Trigger(escaped(path.stem), "name", is_guess=True)


def without_networks(text: str) -> str:
    """Text of a prompt without its `<lora:…>` tags (and their like), and without the commas that they leave behind."""
    if not _TAG.search(text):
        return text.strip()
    return ", ".join(part for part in (" ".join(part.split()) for part in _TAG.sub("", text).split(",")) if part)


def _is_prompt(text: str) -> bool:
    """Whether its brackets are meant as a prompt's: some are escaped, or have weights."""
    return "\\" in text or bool(has_weights(text) and re.search(r":\s*[\d.]+\s*\)", text))


def _activation_text(path: Path) -> str:
    try:
        text = json.loads(path.with_suffix(".json").read_text("utf-8")).get("activation text", "")
    except (ValueError, OSError, AttributeError, RecursionError):
        return ""  # there is none, or it is damaged, which is the WebUI's business; the metadata may still know
    return text if isinstance(text, str) else ""


def _listed(value: str) -> str:
    """A text, or the texts of a list in JSON, joined."""
    if value.lstrip().startswith("["):
        try:
            values = json.loads(value)
        except (ValueError, RecursionError):
            return value
        # Civitai has a list of alternatives, each a prompt of its own: the first is the one that calls it
        return next((item for item in values if isinstance(item, str) and item.strip()), "")
    return value


def _from_tags(path: Path, metadata: Mapping[str, str]) -> Trigger | None:
    """The tag of most pictures that is not in everybody's; certain only where it alone is in all of them."""
    pictures, counts = 0, {}
    own, regularization = _folders(metadata, "ss_dataset_dirs"), _folders(metadata, "ss_reg_dataset_dirs")
    for folder, tags in tag_frequency(metadata).items():
        if folder in regularization and folder not in own:
            continue
        pictures += max(own.get(folder, 0), *tags.values())
        for tag, count in tags.items():
            counts[tag] = counts.get(tag, 0) + count
    telling = {tag: count for tag, count in counts.items() if tag.lower().replace(" ", "_") not in _COMMON}
    if not telling:
        return None
    most = max(telling.values())
    best = [tag for tag, count in telling.items() if count == most]  # in the order of the captions
    tag = next((tag for tag in best if _alike(tag, path.stem)), best[0])
    return Trigger(escaped(tag), "tags", is_guess=most < pictures or len(best) > 1)


def _alike(tag: str, name: str) -> bool:
    """Whether a file is called by a tag: `lily_v2` by `lily`, and by `lily (garden story)`."""
    words, named = (re.findall(r"[^\W_]+", text.lower()) for text in (tag, name))
    return bool(words) and (words[0] in named or "".join(words) in "".join(named))


def tag_frequency(metadata: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """`ss_tag_frequency` as folder -> tag -> count of pictures, in its order; what is not of that form is left out by itself."""
    found: dict[str, dict[str, int]] = {}
    for folder, tags in _object(metadata.get("ss_tag_frequency", "")).items():
        counts: dict[str, int] = {}
        for tag, count in _items(tags):
            if tag.strip() and (number := _count(count)):
                counts[tag.strip()] = counts.get(tag.strip(), 0) + number
        if counts:
            found[folder] = counts
    return found


def _folders(metadata: Mapping[str, str], name: str) -> dict[str, int]:
    """Folder -> pictures in it."""
    return {
        folder: _count(dict(_items(told)).get("img_count")) for folder, told in _object(metadata.get(name, "")).items()
    }


def _object(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _items(values: Any) -> Iterable[tuple[str, Any]]:
    return values.items() if isinstance(values, dict) else ()


def _count(value: Any) -> int:
    """A number of pictures; 0 for what is none."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0
    return int(number) if math.isfinite(number) and number > 0 else 0
