"""The objective's terms at the model's output, against their formulas written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_loraclr.solving.objective import output_terms, style_terms
from tests.solving.test_objective import CLOSE

#: windows of a picture in `predictions`: native size, two side by side, three
WIDTHS = (1, 2, 3)


@pytest.fixture(params=WIDTHS, ids=lambda windows: f"{windows} windows")
def predictions(request: pytest.FixtureRequest) -> dict:
    """Arguments of `output_terms`; in some windows another is to be stayed away from."""
    windows, generator = request.param, torch.Generator().manual_seed(0)
    prediction, target, other = (
        torch.randn(3, 2, 4, 5 * windows, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    scale = torch.rand(3, windows, generator=generator, dtype=torch.float64) + 0.5
    apart = (torch.arange(3 * windows) % 3 != 1).view(3, windows)
    return {"prediction": prediction, "target": target, "scale": scale, "other": other, "apart": apart}


def slow_terms(
    prediction: Tensor, target: Tensor, scale: Tensor, other: Tensor, apart: Tensor
) -> tuple[list[float], list[float]]:
    """`output_terms`, number by number."""
    results = ([], [])
    for b in range(len(prediction)):
        positive, negative, windows = 0.0, 0.0, scale.shape[1]
        for w in range(windows):
            part = (b, slice(None), slice(None), slice(5 * w, 5 * w + 5))
            error, direction = (prediction[part] - target[part]).flatten(), (target[part] - other[part]).flatten()
            positive += sum(float(e) ** 2 for e in error) / len(error) / float(scale[b, w]) / windows
            if apart[b, w]:
                along = sum(float(e) * float(d) for e, d in zip(error, direction, strict=True))
                negative += (along / sum(float(d) ** 2 for d in direction)) ** 2
        results[0].append(positive)
        results[1].append(negative)
    return results


def test_output_terms_equal_their_formula(predictions: dict) -> None:
    found, expected = output_terms(**predictions), slow_terms(**predictions)
    for term, slow in zip(found, expected, strict=True):
        assert term.tolist() == pytest.approx(slow, rel=CLOSE)
    assert found[1].max() > 0


def test_output_terms_have_the_gradient_of_their_value(predictions: dict) -> None:
    rest = {name: value for name, value in predictions.items() if name != "prediction"}
    start = predictions["prediction"].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda prediction: output_terms(prediction, **rest), (start,))


def test_output_terms_have_no_scale_of_their_own(predictions: dict) -> None:
    by = {"prediction": 1e3, "target": 1e3, "other": 1e3, "apart": True, "scale": 1e6}
    scaled = output_terms(
        **{name: value * by[name] for name, value in predictions.items()} | {"apart": predictions["apart"]}
    )
    for term, expected in zip(scaled, output_terms(**predictions), strict=True):
        assert torch.allclose(term, expected, rtol=CLOSE)


@pytest.mark.parametrize(("step", "expected"), [(0.0, 0.0), (-1.0, 1.0), (-0.5, 0.25), (0.5, 0.25)])
def test_the_direction_is_0_at_the_target_and_1_at_the_other(predictions: dict, step: float, expected: float) -> None:
    """`c` is 0 at the target and -1 at the other; what goes neither way costs nothing here, but is an error."""
    target, other, apart = (predictions[name] for name in ("target", "other", "apart"))
    there = target + step * (target - other)
    positive, negative = output_terms(**predictions | {"prediction": there})
    assert negative.tolist() == pytest.approx((expected * apart.sum(1)).tolist(), abs=CLOSE)
    assert bool((positive > 0).all()) == (step != 0)
    aside = torch.randn_like(target)
    for window in range(predictions["scale"].shape[1]):
        part = (..., slice(5 * window, 5 * window + 5))
        d = (target - other)[part]
        along = (aside[part] * d).sum((1, 2, 3), keepdim=True) / d.square().sum((1, 2, 3), keepdim=True)
        aside[part] = aside[part] - along * d
    moved = output_terms(**predictions | {"prediction": there + aside})
    assert torch.allclose(moved[1], negative, atol=CLOSE)
    assert (moved[0] > positive).all()


def test_windows_do_not_know_of_each_other(predictions: dict) -> None:
    """Each by itself, as pictures of native size; and what is wrong in one has no slope in another."""
    windows = predictions["scale"].shape[1]
    whole = output_terms(**predictions)
    alone = []
    for w in range(windows):
        part = {name: predictions[name][..., 5 * w : 5 * w + 5] for name in ("prediction", "target", "other")}
        alone.append(output_terms(**part, **{name: predictions[name][:, w : w + 1] for name in ("scale", "apart")}))
    assert torch.allclose(whole[0], sum(positive for positive, _ in alone) / windows, rtol=CLOSE)
    assert torch.allclose(whole[1], sum(negative for _, negative in alone), rtol=CLOSE)
    wrong = predictions["target"].clone()
    wrong[..., :5] += 1
    wrong.requires_grad_()
    positive, negative = output_terms(**predictions | {"prediction": wrong})
    (positive + negative).sum().backward()
    assert wrong.grad[..., :5].abs().max() > 0
    assert not wrong.grad[..., 5:].any()


def test_where_both_do_the_same_there_is_nothing_to_stay_away_from(predictions: dict) -> None:
    prediction = predictions["prediction"].clone().requires_grad_()
    same = {"prediction": prediction, "other": predictions["target"], "apart": torch.ones_like(predictions["apart"])}
    positive, negative = output_terms(**predictions | same)
    (positive + negative).sum().backward()
    assert not negative.any()
    assert positive.isfinite().all() and prediction.grad.isfinite().all() and prediction.grad.any()


def test_a_window_whose_other_is_not_one_to_stay_away_from_has_no_contrast(predictions: dict) -> None:
    nowhere = output_terms(**predictions | {"apart": torch.zeros_like(predictions["apart"])})
    assert not nowhere[1].any()
    assert torch.equal(nowhere[0], output_terms(**predictions)[0])


@pytest.fixture
def styled() -> dict:
    """Arguments of `style_terms`."""
    generator = torch.Generator().manual_seed(1)
    names = ("called", "uncalled", "target", "other")
    latents = {name: torch.randn(3, 2, 4, 5, generator=generator, dtype=torch.float64) for name in names}
    scales = {name: torch.rand(3, generator=generator, dtype=torch.float64) + 0.5 for name in ("scale", "style_scale")}
    return latents | scales


def test_style_terms_equal_their_formula(styled: dict) -> None:
    found = style_terms(**styled)
    for b in range(3):
        with_words, without = ([float(v) for v in styled[name][b].flatten()] for name in ("called", "uncalled"))
        target, other = ([float(v) for v in styled[name][b].flatten()] for name in ("target", "other"))
        n = len(target)
        errors = sum((m - e) ** 2 for m, e in zip(with_words + without, target + other, strict=True)) / (2 * n)
        changed = sum(
            ((m - m0) - (e - e0)) ** 2 for m, m0, e, e0 in zip(with_words, without, target, other, strict=True)
        )
        assert float(found[0][b]) == pytest.approx(errors / float(styled["scale"][b]), rel=CLOSE)
        assert float(found[1][b]) == pytest.approx(changed / n / float(styled["style_scale"][b]), rel=CLOSE)


def test_style_terms_have_the_gradient_of_their_value(styled: dict) -> None:
    rest = {name: value for name, value in styled.items() if name not in ("called", "uncalled")}
    both = [styled[name].clone().requires_grad_() for name in ("called", "uncalled")]
    assert torch.autograd.gradcheck(lambda called, uncalled: style_terms(called, uncalled, **rest), both)


def test_an_error_that_is_there_with_the_styles_words_and_without_is_none_in_what_they_change(styled: dict) -> None:
    """The subject is wrong alike in both: only the first term says so. A style that is always there is wrong in the second."""
    target, other, error = styled["target"], styled["other"], torch.randn_like(styled["target"])
    positive, negative = style_terms(**styled | {"called": target + error, "uncalled": other + error})
    assert negative.abs().max() < CLOSE < positive.min()
    always = style_terms(**styled | {"called": target, "uncalled": target})
    changed = (target - other).square().mean((1, 2, 3))
    assert torch.allclose(always[1], changed / styled["style_scale"], rtol=CLOSE)
    assert torch.allclose(always[0], changed / 2 / styled["scale"], rtol=CLOSE)
