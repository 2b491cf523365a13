"""Prompts and their templates."""

from __future__ import annotations

import pytest

from lib_loraclr.errors import LoraclrError
from lib_loraclr.recording.teachers import Slot, make_teachers
from lib_loraclr.request.merge_request import Concept
from lib_loraclr.request.phrases import Part, Phrases
from lib_loraclr.request.prompts import PLAIN, TEMPLATES, PromptOptions, check_prompts, concept_prompts, is_background

FOX = Concept("fox.safetensors", trigger="sks animal")
CAT = Concept("cat.safetensors", trigger="ohwx cat")
CLAY = Concept("clay.safetensors", trigger="clay style", kind="style")
MONO = Concept("mono.safetensors", kind="style")
OPTIONS = PromptOptions(templates=("a {trigger}", "{trigger}, {trigger}"), plain=("a dog", "a car"))


def test_every_template_is_asked_with_the_trigger_wherever_it_stands() -> None:
    assert concept_prompts(FOX, OPTIONS) == ("a sks animal", "sks animal, sks animal")


def test_a_style_is_asked_on_plain_prompts_with_its_words_if_it_has_any() -> None:
    assert concept_prompts(CLAY, OPTIONS) == ("a dog, clay style", "a car, clay style")
    assert concept_prompts(MONO, OPTIONS) == ("a dog", "a car")


def test_a_concepts_own_prompts_replace_the_templates() -> None:
    own = Concept("fox.safetensors", trigger="sks", prompts=("a red sks",))
    assert concept_prompts(own, OPTIONS) == ("a red sks",)


def test_quality_words_end_every_prompt_also_those_that_call_no_concept() -> None:
    options = PromptOptions(OPTIONS.templates, OPTIONS.plain, quality="best quality")
    teachers = make_teachers([FOX, CLAY, MONO], options)
    assert len(teachers) == 6  # three concepts, both styles on the subject, and the prompts without triggers
    for part in Part:
        phrases = Phrases(options.bank_name, part, templates=options.templates, seed=0)
        slots = [Slot(k, part, phrases.draw(), {}) for k in range(50)]
        for teacher in teachers:
            assert all(teacher.prompt(slot).endswith(", best quality") for slot in slots), teacher.name
    assert teachers[0].prompt_beside(teachers[:1], slots[0]).endswith(", best quality")


def test_only_a_style_without_trigger_words_is_in_the_background() -> None:
    assert [is_background(concept) for concept in (FOX, CLAY, MONO, Concept("x"))] == [False, False, True, False]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_preset_is_complete_and_passes_its_own_check(name: str) -> None:
    options = PromptOptions.preset(name)
    options.check()
    assert (options.templates, options.plain) == (TEMPLATES[name], PLAIN[name])
    assert not any("{" in prompt for prompt in options.plain)


def test_every_way_of_prompting_has_plain_prompts() -> None:
    assert set(TEMPLATES) == set(PLAIN)


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(LoraclrError, match="no prompt preset 'boru': did you mean 'booru'"):
        PromptOptions.preset("boru")


def test_different_concepts_pass_and_any_number_of_styles_without_words() -> None:
    check_prompts([FOX, CAT, CLAY, MONO, Concept("grain.safetensors", kind="style")], OPTIONS)


@pytest.mark.parametrize("trigger", ["sks animal", "SKS Animal", " sks  animal"])
def test_two_concepts_that_the_text_encoder_cannot_tell_apart_are_named(trigger: str) -> None:
    """CLIP's tokenizer lowers the case and joins blanks, so these are one and the same prompt to the model."""
    twin = Concept("twin.safetensors", trigger=trigger)
    with pytest.raises(LoraclrError, match="fox and twin have the same prompts .*: give .* other trigger words"):
        check_prompts([FOX, CAT, twin], OPTIONS)


def test_two_concepts_with_the_same_prompts_of_their_own_are_named() -> None:
    twins = [Concept(f"{name}.safetensors", trigger=name, prompts=("a sks",)) for name in ("one", "two")]
    with pytest.raises(LoraclrError, match="one and two have the same prompts"):
        check_prompts(twins, OPTIONS)


def test_two_styles_with_the_same_words_are_named() -> None:
    twin = Concept("putty.safetensors", trigger="clay style", kind="style")
    with pytest.raises(LoraclrError, match=r"clay and putty have the same prompts \('a dog, clay style', …\)"):
        check_prompts([CLAY, twin], OPTIONS)


def test_a_subject_that_nothing_calls_is_refused_with_both_remedies() -> None:
    with pytest.raises(LoraclrError, match=r"fox has no trigger words.*trigger=….*kind=style"):
        check_prompts([Concept("fox.safetensors")], OPTIONS)


def test_a_subject_with_prompts_of_its_own_needs_no_trigger_words() -> None:
    check_prompts([Concept("fox.safetensors", prompts=("a red fox",)), CAT], OPTIONS)


def test_the_templates_are_checked_with_the_concepts() -> None:
    with pytest.raises(LoraclrError, match="'a fox' has no"):
        check_prompts([FOX], PromptOptions(templates=("a fox",)))


def test_the_bank_is_that_of_the_templates_unless_another_is_named() -> None:
    assert [PromptOptions.preset(name).bank_name for name in sorted(TEMPLATES)] == sorted(TEMPLATES)
    assert OPTIONS.bank_name == "photo"
    assert PromptOptions(bank="none").bank_name == "none"
    assert PromptOptions(TEMPLATES["booru"], bank="photo").bank_name == "photo"


def test_an_unknown_bank_is_answered_with_the_nearest() -> None:
    PromptOptions(bank="none").check()
    with pytest.raises(LoraclrError, match="no bank of phrases 'boru': did you mean 'booru'"):
        PromptOptions(bank="boru").check()
