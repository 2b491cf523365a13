"""Changed weights that were never written: as if they had been, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lib_loraclr.model import substitution
from lib_loraclr.model.host import Host
from lib_loraclr.model.low_rank import Factors, concatenate
from lib_loraclr.model.substitution import Layer
from lib_loraclr.model.substitution import substituted as substituted_on
from lib_loraclr.progress import Progress
from lib_loraclr.recording.examples import Examples
from lib_loraclr.recording.predictor import Predictor
from lib_loraclr.recording.teachers import Slot, Teacher
from lib_loraclr.refining.refinement import refine
from lib_loraclr.request.merge_request import RecordingOptions
from lib_loraclr.request.phrases import Part, Phrase
from lib_loraclr.solving.objective import RefinementOptions, Terms

substituted = partial(substituted_on, device=torch.device("cpu"))

#: relative; `W + up @ down` is added in fp32 whatever the model's precision, so that float64 models round there too
ADDED = 1e-6

EMBED = 6


class Model(nn.Module):
    """A layer of each form; `failure` is raised in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.linear = nn.Linear(3, EMBED)
        self.attention = nn.MultiheadAttention(EMBED, 2, batch_first=True)
        self.last = nn.Linear(EMBED, 4, bias=False)
        self.failure: BaseException | None = None

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.linear(self.conv(x).flatten(2).mT)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        if self.failure is not None:
            raise self.failure
        return self.last(tokens)


@pytest.fixture
def model() -> Model:
    return Model().double().eval().requires_grad_(False)


@pytest.fixture
def picture() -> Tensor:
    return torch.randn(2, 2, 4, 4, dtype=torch.float64)


def layers_of(model: Model) -> dict[str, Layer]:
    """Three layers are packed into `in_proj_weight`; `out_proj`'s weight is used without calling the module."""
    attention = model.attention
    packed = {
        name: Layer(attention, attention, "in_proj_weight", slice(i * EMBED, (i + 1) * EMBED))
        for i, name in enumerate(("q", "k", "v"))
    }
    out = {"out": Layer(module=attention, owner=attention.out_proj)}
    return {name: Layer.of(getattr(model, name)) for name in ("conv", "linear", "last")} | packed | out


def deltas_for(model: Model, *names: str, seed: int = 0, trained: bool = False) -> dict[str, Factors]:
    """Random factors, by default for every layer."""
    generator, layers, deltas = torch.Generator().manual_seed(seed), layers_of(model), {}
    for name in names or layers:
        d_out, d_in = layers[name].shape
        up = torch.randn(d_out, 2, generator=generator, dtype=torch.float64)
        down = torch.randn(2, d_in, generator=generator, dtype=torch.float64) / 3
        deltas[name] = Factors(up.requires_grad_(trained), down.requires_grad_(trained))
    return deltas


def changed_copy(model: Model, deltas: dict[str, Factors]) -> Model:
    """The second way: a copy whose weights are really other numbers."""
    copy = deepcopy(model)
    for name, factors in deltas.items():
        weight = layers_of(copy)[name].weight  # a view where the parameter holds several layers
        weight += factors.dense().detach().view_as(weight)
    return copy


def distance(result: Tensor, expected: Tensor) -> float:
    return float((result - expected).norm() / expected.norm())


def traces(model: nn.Module) -> tuple:
    """All that a substitution could leave behind: parameters, their bytes and order, hooks, shadows."""
    state = [(name, id(tensor), tensor.numpy().tobytes()) for name, tensor in model.state_dict(keep_vars=True).items()]
    modules = [
        (name, sorted(module.__dict__), len(module._forward_pre_hooks), len(module._forward_hooks))
        for name, module in model.named_modules()
    ]
    return state, modules, [name for name, _ in model.named_parameters()]


def test_the_shape_of_a_layer_is_that_of_its_part(model: Model) -> None:
    shapes = {name: layer.shape for name, layer in layers_of(model).items()}
    assert shapes == {
        "conv": (3, 18),
        "linear": (EMBED, 3),
        "last": (4, EMBED),
        **dict.fromkeys(("q", "k", "v", "out"), (EMBED, EMBED)),
    }


CHOICES = [("linear",), ("conv",), ("q",), ("q", "v"), ("v", "k", "q"), ("out",), ("q", "out"), ()]


@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "with gradients"])
@pytest.mark.parametrize("names", CHOICES, ids=lambda names: "+".join(names) or "all")
def test_the_output_is_that_of_a_model_whose_weights_were_changed(
    model: Model, picture: Tensor, names: tuple[str, ...], gradients: bool
) -> None:
    """Without gradients, torch runs attention in one fused call of its own."""
    deltas = deltas_for(model, *names)
    with torch.set_grad_enabled(gradients):
        plain, expected = model(picture), changed_copy(model, deltas)(picture)
        with substituted(layers_of(model), deltas):
            assert distance(model(picture), expected) < ADDED
            assert distance(model(picture), expected) < ADDED  # and again
        assert torch.equal(model(picture), plain)
    assert distance(plain, expected) > 100 * ADDED


def test_several_deltas_of_a_layer_are_added(model: Model, picture: Tensor) -> None:
    first, second = deltas_for(model, "linear", "q"), deltas_for(model, "conv", "q", "v", seed=1)
    several = {
        key: tuple(delta[key].scaled(scale) for delta, scale in ((first, 1.0), (second, -0.5)) if key in delta)
        for key in first.keys() | second.keys()
    }
    joined = {key: concatenate(parts) for key, parts in several.items()}
    with substituted(layers_of(model), several):
        found = model(picture)
    assert distance(found, changed_copy(model, joined)(picture)) < ADDED
    assert distance(found, changed_copy(model, first)(picture)) > 100 * ADDED


def test_half_precision_weights_are_added_in_fp32_and_rounded_once(model: Model) -> None:
    """In bf16, since not every torch that we support multiplies fp16 on a CPU."""
    half = deepcopy(model.last).bfloat16()
    half.weight.fill_(1.0)
    tiny = Factors(torch.full((4, 8), 2.0**-9), torch.full((8, EMBED), 2.0**-1))  # each of the 8 alone would be lost
    with substituted({"last": Layer.of(half)}, {"last": tiny}):
        output = half(torch.eye(EMBED).bfloat16())
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, torch.full((EMBED, 4), 1 + 2.0**-7).bfloat16())


def test_gradients_reach_the_factors_as_they_do_in_a_dense_parametrisation(model: Model, picture: Tensor) -> None:
    deltas = deltas_for(model, trained=True)
    copy = changed_copy(model, deltas).requires_grad_(True)
    copy(picture).square().sum().backward()
    with substituted(layers_of(model), deltas):
        model(picture).square().sum().backward()
    for name, layer in layers_of(copy).items():
        rows = layer.rows or slice(None)
        dense = getattr(layer.owner, layer.parameter).grad[rows].flatten(1)
        assert distance(deltas[name].up.grad, dense @ deltas[name].down.detach().mT) < ADDED
        assert distance(deltas[name].down.grad, deltas[name].up.detach().mT @ dense) < ADDED
    assert all(parameter.grad is None for parameter in model.parameters())


def test_recomputed_activations_see_the_changed_weights_while_the_context_is_open(
    model: Model, picture: Tensor
) -> None:
    kept, recomputed = deltas_for(model, trained=True), deltas_for(model, trained=True)
    with substituted(layers_of(model), kept):
        model(picture).square().sum().backward()
    with substituted(layers_of(model), recomputed):
        checkpoint(model, picture, use_reentrant=False).square().sum().backward()
    for name in kept:
        assert torch.equal(recomputed[name].up.grad, kept[name].up.grad)


def test_a_refinement_that_must_recompute_its_activations_makes_the_same_steps(host: Host) -> None:
    """A budget of one byte leaves no other way; the loss's backward pass runs the model again, with which weights?"""
    keys = [key for key in host.layers() if key.endswith(("attn2_to_q", "conv1", "mlp_fc1"))][::4]

    def run(memory: int) -> dict[str, Factors]:
        generator = torch.Generator().manual_seed(0)
        start = {}
        for key in keys:
            d_out, d_in = host.layers()[key].shape
            up, down = torch.randn(d_out, 1, generator=generator), torch.randn(1, d_in, generator=generator)
            start[key] = Factors(up / d_out, down)
        latents = torch.randn(2, host.latent_channels, 8, 8, generator=generator).half()
        teacher = Teacher("fox", 0, (0,), "a fox")
        slots = tuple(Slot(k, Part.LEARN, Phrase("{}"), {}) for k in range(2))
        examples = Examples(
            teacher,
            slots,
            ("a fox", "a fox"),
            latents,
            torch.tensor([300, 700]),
            latents,
            torch.ones(2),
            None,
            torch.zeros(2, dtype=torch.bool),
        )
        predictor = Predictor(
            host, [start], RecordingOptions(), negative_prompt="", background=(), memory=memory, progress=Progress()
        )
        options = RefinementOptions(Terms(), steps=1, batch_size=2, scene_rows=0, learning_rate=1e-3)
        return refine(predictor, start, [examples], [examples], options, seed=0).factors

    kept, recomputed = run(memory=1 << 40), run(memory=1)
    for key in keys:
        assert distance(recomputed[key].up, kept[key].up) < 1e-3  # fp32; one sample at a time sums in another order


def succeed(model: Model, run: Callable[[], Tensor]) -> None:
    run()


def fail(model: Model, run: Callable[[], Tensor]) -> None:
    model.failure = ValueError("in the middle")
    try:
        with pytest.raises(ValueError, match="in the middle"):
            run()
    finally:
        model.failure = None


def interrupt(model: Model, run: Callable[[], Tensor]) -> None:
    model.failure = KeyboardInterrupt()
    try:
        with pytest.raises(KeyboardInterrupt):
            run()
    finally:
        model.failure = None


def name_another_layer(model: Model, run: Callable[[], Tensor]) -> None:
    deltas = deltas_for(model)
    with pytest.raises(KeyError), substituted(layers_of(model), {**deltas, "no such layer": deltas["conv"]}):
        pass


@contextmanager
def broken(layer: nn.Module, error: BaseException) -> Iterator[None]:
    """A layer that fails while its changed weight is in place."""

    def raise_it(*_: object) -> None:
        raise error

    handle = layer.register_forward_pre_hook(raise_it)
    try:
        yield
    finally:
        handle.remove()


def fail_inside_a_layer(model: Model, run: Callable[[], Tensor]) -> None:
    with pytest.raises(MemoryError), broken(model.attention, MemoryError()):
        run()


def interrupt_inside_a_layer(model: Model, run: Callable[[], Tensor]) -> None:
    with pytest.raises(KeyboardInterrupt), broken(model.attention, KeyboardInterrupt()):
        run()


def misfit(model: Model, run: Callable[[], Tensor]) -> None:
    """A delta of another shape is found out in the middle of a run."""
    deltas = {**deltas_for(model), "q": Factors(torch.ones(EMBED + 1, 1), torch.ones(1, EMBED))}
    with pytest.raises(RuntimeError), substituted(layers_of(model), deltas):
        model(torch.zeros(1, 2, 4, 4, dtype=torch.float64))


@pytest.mark.parametrize(
    "ending",
    [succeed, fail, interrupt, name_another_layer, fail_inside_a_layer, interrupt_inside_a_layer, misfit],
    ids=lambda f: f.__name__,
)
def test_the_model_is_left_bit_for_bit_whatever_happens(
    model: Model, picture: Tensor, ending: Callable[[Model, Callable[[], Tensor]], None]
) -> None:
    before, plain = traces(model), model(picture)

    def run() -> Tensor:
        with substituted(layers_of(model), deltas_for(model)):
            return model(picture)

    ending(model, run)
    assert traces(model) == before
    assert torch.equal(model(picture), plain)


def test_a_context_goes_on_after_an_error_inside_it(model: Model, picture: Tensor) -> None:
    deltas = deltas_for(model)
    expected = changed_copy(model, deltas)(picture)
    with substituted(layers_of(model), deltas):
        fail(model, lambda: model(picture))
        assert distance(model(picture), expected) < ADDED


def test_no_changed_weight_outlives_its_layers_run(model: Model, picture: Tensor) -> None:
    def shadows() -> set[str]:
        return {"weight", "in_proj_weight"} & {name for module in model.modules() for name in module.__dict__}

    with substituted(layers_of(model), deltas_for(model)):
        model(picture)
        assert not shadows()
        fail_inside_a_layer(model, lambda: model(picture))
        assert not shadows()


def test_no_delta_at_all_is_the_model_itself(model: Model, picture: Tensor) -> None:
    before, plain = traces(model), model(picture)
    with substituted(layers_of(model), {}):
        assert traces(model) == before
        assert torch.equal(model(picture), plain)


def test_of_contexts_inside_each_other_the_inner_one_counts_for_the_layers_it_names(
    model: Model, picture: Tensor
) -> None:
    before = traces(model)
    outer, inner = deltas_for(model, "linear", "conv", seed=1), deltas_for(model, "linear", "last", seed=2)
    first, both = changed_copy(model, outer)(picture), changed_copy(model, {**outer, **inner})(picture)
    with substituted(layers_of(model), outer):
        with substituted(layers_of(model), inner):
            assert distance(model(picture), both) < ADDED
            fail(model, lambda: model(picture))
            assert distance(model(picture), both) < ADDED
        assert distance(model(picture), first) < ADDED
    assert traces(model) == before
    assert distance(first, both) > 100 * ADDED


def test_whoever_observes_a_call_sees_the_changed_weight(model: Model, picture: Tensor) -> None:
    """Also an observer that was there first: a recording is opened before or after the substitution."""
    deltas, seen = deltas_for(model, "linear"), []
    expected = changed_copy(model, deltas).linear.weight
    handle = model.linear.register_forward_pre_hook(lambda module, _: seen.append(module.weight))
    try:
        with substituted(layers_of(model), deltas):
            model(picture)
    finally:
        handle.remove()
    assert distance(seen[0], expected) < ADDED


def test_a_weight_that_is_kept_elsewhere_comes_to_its_factors():
    """As where Forge keeps weights off the card; the device without memory stands for the card."""
    layer = Layer.of(torch.nn.Linear(3, 2, bias=False))
    factors = Factors(torch.ones(2, 1, device="meta"), torch.ones(1, 3, device="meta"))
    changed = substitution._changed_weight(layer.weight, [(layer, factors)])
    assert changed.device.type == "meta" and layer.weight.device.type == "cpu"
