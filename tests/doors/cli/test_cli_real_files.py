"""Names that are odd, on the command line."""

from __future__ import annotations

import pytest
from runs import request_of

from lib_loraclr.errors import LoraclrError


def test_a_name_with_equals_signs_can_be_named() -> None:
    files = ["a=b,c;d.safetensors", "a.safetensors"]
    flags = ["--trigger", "a=b,c;d=word=7", "--trigger", "a=x", "--kind", "a=b,c;d=style", "--importance", "a=b,c;d=2"]
    odd, plain = request_of(*files, *flags, "--concept-prompt", "a=b,c;d=a=b").concepts
    assert (odd.trigger, odd.kind, odd.importance, odd.prompts) == ("word=7", "style", 2.0, ("a=b",))
    assert (plain.trigger, plain.kind) == ("x", "subject")


def test_the_longest_name_that_fits_is_meant() -> None:
    short, long = request_of("a.safetensors", "a=b.safetensors", "--trigger", "a=b=c").concepts
    assert (short.trigger, long.trigger) == (None, "c")


def test_a_name_that_nothing_has_is_still_refused() -> None:
    with pytest.raises(LoraclrError, match="There is no LoRA called 'b'.*known are a"):
        request_of("a=x.safetensors", "--trigger", "b=a=x")


def test_clip_skip_is_taken_into_the_request() -> None:
    assert request_of("a.safetensors", "--clip-skip", "2").recording.clip_skip == 2
    assert request_of("a.safetensors").recording.clip_skip == 0
