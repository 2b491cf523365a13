"""Messages about unknown names, and which exceptions are a person's to mend."""

from __future__ import annotations

from lib_loraclr.errors import Interrupted, LoraclrError, unknown_name


def test_an_unknown_name_is_answered_with_the_nearest_match_and_the_sorted_list() -> None:
    error = unknown_name("method", "contrastiv", ["ridge", "contrastive", "average"])
    assert isinstance(error, LoraclrError)
    assert str(error) == (
        "There is no method 'contrastiv': did you mean 'contrastive'? known are average, contrastive, ridge."
    )


def test_a_name_unlike_any_other_is_not_answered_with_a_guess() -> None:
    assert str(unknown_name("method", "zzz", ["ridge", "average"])) == (
        "There is no method 'zzz': known are average, ridge."
    )


def test_any_iterable_of_names_will_do() -> None:
    assert "known are a, b" in str(unknown_name("thing", "x", iter({"b": 1, "a": 2})))


def test_an_interruption_is_not_shown_as_a_mistake() -> None:
    assert not issubclass(Interrupted, LoraclrError)
