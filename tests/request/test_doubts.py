"""What can be merged and is hardly meant."""

from __future__ import annotations

import pytest

from lib_loraclr.request import Concept, unusual_weights, words_within_words


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ((1.0, 1.0), []),
        ((0.0, 1.5), []),
        ((5.0, 5.0), ["The weight of fox is 5, and above 2"]),
        ((5.0, -1.0), ["The text encoder weight of fox is 5", "The UNet weight of fox is -1: below 0"]),
    ],
)
def test_a_weight_that_no_prompt_would_have_is_doubted(weights: tuple[float, float], told: list[str]) -> None:
    found = unusual_weights([Concept("loras/fox.safetensors", *weights)])
    assert len(found) == len(told) and all(text in warning for text, warning in zip(told, found, strict=True))


@pytest.mark.parametrize(
    ("first", "second", "doubted"),
    [
        ("sks animal", "sks animal, ohwx bird", True),
        ("cat", "black cat", True),
        ("cat", "caterpillar", False),
        ("sks animal", "ohwx bird", False),
        ("sks animal", "sks animal", False),  # is refused
        ("", "ohwx bird", False),
    ],
)
def test_words_that_call_another_concept_too_are_doubted(first: str, second: str, doubted: bool) -> None:
    concepts = [Concept("fox.safetensors", trigger=first), Concept("both.safetensors", trigger=second)]
    for named in (concepts, concepts[::-1]):
        found = words_within_words(named)
        assert bool(found) is doubted and all(
            "words of both" in warning and "those of fox" in warning for warning in found
        )
