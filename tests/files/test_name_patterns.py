"""Regular expressions out of files: they mean what PEFT means by them, and none of them holds anybody up."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lib_loraclr.errors import LoraclrError
from lib_loraclr.files.lora_files import read_lora
from lib_loraclr.files.name_patterns import LONGEST_PATTERN, MOST_STEPS, NamePatterns

#: on each of them Python's own matcher takes twice as long, or a power more, for every letter
HOSTILE = [
    "(a+)+b",
    "(a|a)*b",
    "(a*)*b",
    "(a|aa)+b",
    "([a-z]+)*b",
    "(.*a)" * 25 + "b",
    "(a?a?a?a?a?a?a?a?a?a?a?a?)aaaaaaaaaaaab",
    "(((((a*)*)*)*)*)*b",
    "(a|a)" * 40 + "b",
]


def fits(pattern: str, name: str) -> bool:
    return NamePatterns({pattern: 1}).find(name) == 1


def steps_taken(pattern: str, name: str) -> int:
    patterns = NamePatterns({pattern: 1})
    patterns.find(name)
    return MOST_STEPS - patterns._left


@pytest.mark.parametrize("pattern", HOSTILE)
def test_a_hostile_pattern_takes_steps_that_grow_with_the_name_s_square_at_most(pattern: str) -> None:
    short, long = steps_taken(pattern, "a" * 100), steps_taken(pattern, "a" * 200)
    assert 0 < long <= 4.2 * short, "Python's own matcher would take 2^100 times as long"
    assert long < 50_000 and not fits(pattern, "a" * 200)


def test_a_hostile_pattern_in_a_file_is_matched_at_once(tmp_path: Path) -> None:
    """24 letters took 4 s, and each more twice as long; here it is 200."""
    tensors = {f"unet.down_blocks.{'a' * 200}.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}
    told = {"unet.lora_alpha": 8, "unet.alpha_pattern": {"(a+)+b": 3, "(a+)+": 2}}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(told)})
    (layer,) = read_lora(tmp_path / "a.safetensors").layers.values()
    assert float(layer["alpha"]) == 2


def test_patterns_without_end_are_given_up() -> None:
    patterns = NamePatterns({f"({'(a|b)*' * 100})*{i}": 1 for i in range(100)})
    with pytest.raises(ValueError, match=f"its patterns take more than {MOST_STEPS} steps"):
        for _ in range(1000):
            patterns.find("ab" * 100)


NOT_READ = {
    "(a": "opens a bracket that it does not close",
    "a)": "closes a bracket that it does not open",
    "*a": "repeats nothing",
    "a**": "repeats in a way that is not read",
    "a{3}": "repeats in a way that is not read",
    "a{9999999}": "repeats in a way that is not read",
    r"(a)\1": r"has '\\\\1', which is not read",
    r"a\b": "which is not read",
    "(?=a)b": "a group that looks around",
    "(?P<x>a)": "a group that looks around",
    "[a": "a class that is not read",
    "[z-a]": r"the class \[z-a\], which is none",
    "\\": "which is not read",
    "(" * 30 + "a" + ")" * 30: "groups inside each other",
    "+" + "a" * LONGEST_PATTERN: f"{LONGEST_PATTERN + 1} characters, and {LONGEST_PATTERN} are read",
}


@pytest.mark.parametrize(("pattern", "said"), NOT_READ.items(), ids=[pattern[:12] for pattern in NOT_READ])
def test_what_is_not_read_is_named(tmp_path: Path, pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        NamePatterns({pattern: 1})
    tensors = {f"unet.mid_block.x.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}
    told = {"lora_adapter_metadata": json.dumps({"unet.alpha_pattern": {pattern: 3}})}
    save_file(tensors, tmp_path / "a.safetensors", told)
    with pytest.raises(LoraclrError, match=r"lora_adapter_metadata of .*a\.safetensors cannot be read .*strength"):
        read_lora(tmp_path / "a.safetensors")


def test_the_first_pattern_that_fits_counts() -> None:
    for patterns in ({"to_k": 1, ".*k": 2}, {".*k": 1, "to_k": 2}, {"x": 3, "a.to_k": 1, "to_k": 2}):
        assert NamePatterns(patterns).find("mid.a.to_k") == 1
    assert NamePatterns({"to_v": 1}).find("mid.a.to_k") is None


ATOMS = st.sampled_from(["a", "b", ".", r"\.", "[ab]", "[^a]", r"\w", "_", "^", "$"])


def grouped(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    repeated = st.builds(lambda atom, sign: f"(?:{atom}){sign}", inner, st.sampled_from(["", "*", "+", "?", "*?"]))
    return st.one_of(
        repeated, st.builds("{}{}".format, inner, inner), st.builds(lambda a, b: f"({a}|{b})", inner, inner)
    )


@settings(max_examples=400, deadline=None)
@given(pattern=st.recursive(ATOMS, grouped, max_leaves=6), name=st.text("ab._", max_size=7))
def test_patterns_mean_what_python_means_by_them(pattern: str, name: str) -> None:
    """On names so short that its matcher comes to an end; a name that is no pattern takes its dots as dots."""
    if re.fullmatch(r"[\w.-]*", pattern):
        pattern = f"(?:{pattern})"
    assert fits(pattern, name) is (re.match(rf"(.*\.)?({pattern})$", name) is not None)
