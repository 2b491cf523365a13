"""Words of the captions that LoRAs were trained with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace

from lib_loraclr.recording.asking import caption_words
from lib_loraclr.request.merge_request import Concept


def lora(*folders: Mapping[str, int], trigger: str = "") -> SimpleNamespace:
    metadata = {"ss_tag_frequency": json.dumps({f"{k}_folder": tags for k, tags in enumerate(folders)})}
    concept = Concept("x.safetensors", trigger=trigger)
    return SimpleNamespace(concept=concept, file=SimpleNamespace(metadata=metadata))


def test_words_that_most_folders_know_are_first_and_the_rest_by_name() -> None:
    loras = [lora({"smile": 3, "hat": 1}), lora({"smile": 1, "tree": 9}, {"tree": 1})]
    assert caption_words(loras) == ("smile", "tree", "hat")


def test_trigger_words_are_not_among_them_in_any_case() -> None:
    loras = [lora({"SKS Animal": 9, "hat": 1}, trigger="sks animal, red fox"), lora({"red fox": 2, "sky": 1})]
    assert caption_words(loras) == ("hat", "sky")


def test_there_are_forty_at_most_and_none_where_nothing_is_known() -> None:
    assert len(caption_words([lora({f"tag {k}": 1 for k in range(100)})])) == 40
    assert caption_words([]) == ()
    assert caption_words([SimpleNamespace(concept=Concept("x"), file=SimpleNamespace(metadata={}))]) == ()
