"""The merge as a whole, on the demo checkpoint with real LoRA files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib_loraclr.errors import Interrupted, LoraclrError
from lib_loraclr.files.lora_files import serialize
from lib_loraclr.files.tensor_files import DTYPES
from lib_loraclr.merge import stage_plan, stages
from lib_loraclr.merge.merging import measure_loras, merge_loras
from lib_loraclr.merge.stages import Stages
from lib_loraclr.model.host import Host
from lib_loraclr.model.low_rank import Factors, concatenate
from lib_loraclr.output.merged import Merge
from lib_loraclr.output.merged_tensors import lora_tensors
from lib_loraclr.output.saving import lora_metadata
from lib_loraclr.progress import Progress, Stage
from lib_loraclr.recording.sampling import initial_noise
from lib_loraclr.request.merge_request import RecordingOptions
from lib_loraclr.solving.methods import METHODS
from tests.small import PROMPTS, concept, measure_on_little, request


def predict(host: Host, deltas: Mapping[str, Factors], prompt: str) -> torch.Tensor:
    """One noise prediction of the whole model, text encoder included."""
    noise = initial_noise(host, [7], 128, 128)
    with torch.no_grad(), host.apply(deltas):
        return host.denoise(noise, torch.tensor([600]), host.encode([prompt]))


def file_bytes(merge: Merge) -> bytes:
    return serialize(lora_tensors(merge), lora_metadata(merge, "merged"))


def changed_copy(host: Host, merge: Merge, prompt: str) -> torch.Tensor:
    """The slow second way: a copy of the model whose weights really are `W + Σ D_i`, in double precision."""
    layers, saved = host.layers(), {}
    try:
        for given in merge.inputs:
            for key, factors in given.deltas.items():
                weight = layers[key].weight
                saved.setdefault(key, weight.detach().clone())
                dense = (factors.up.double() @ factors.down.double()).view_as(weight)
                weight.data = (weight.double() + dense).float()
        return predict(host, {}, prompt)
    finally:
        for key, weight in saved.items():
            layers[key].weight.data = weight


@pytest.fixture(scope="module", autouse=True)
def measured_on_little() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        measure_on_little(patch, paths=2, steps=4)
        yield


@pytest.fixture(scope="module")
def fox_and_pizza(demo: Path, host: Host, measured_on_little: None) -> Merge:
    return merge_loras(request(demo, "fox-face", "pizza"), host)


def test_weighted_sum_is_what_all_tags_together_do(demo: Path, host: Host) -> None:
    concepts = (concept(demo, "fox-face", te_weight=0.5, unet_weight=0.8), concept(demo, "pizza", unet_weight=-0.4))
    asked = replace(request(demo, "fox-face", method="weighted_sum", options={}, precision="fp32"), concepts=concepts)
    merge = merge_loras(asked, host)
    prompt = "a photo of a sks animal and a vbk food"
    both, expected = predict(host, merge.factors, prompt), changed_copy(host, merge, prompt)
    tolerance = 2e-4 * float(expected.norm())
    assert float((both - expected).norm()) < tolerance
    for given in merge.inputs:
        alone = float((predict(host, given.deltas, prompt) - predict(host, {}, prompt)).norm())
        assert alone > 50 * tolerance, f"{given.concept.label} changes too little for the comparison to mean anything"


def test_contrastive_keeps_more_than_the_sum_and_the_average(
    demo: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the words that were recorded: to keep more in others takes more words than a test has time for."""
    recording = RecordingOptions(paths=4, steps=4, guidance=4.0, height=64, width=64)
    asked = request(demo, "fox-face", "pizza", recording=recording, prompts=replace(PROMPTS, bank="none"))
    average = merge_loras(replace(asked, method="average", options={}), host).report
    report = merge_loras(asked, host).report
    assert mean(report) > max(sum(c.all_tags for c in report.concepts) / 2, mean(average))
    # the control: the same merge with every recording taken for the other concept's
    learn = Stages.learn

    def shuffled(stages: Stages) -> list:
        first, second, *rest = learn(stages)
        return [replace(first, teacher=second.teacher), replace(second, teacher=first.teacher), *rest]

    monkeypatch.setattr(Stages, "learn", shuffled)
    confused = merge_loras(asked, host).report
    assert mean(confused) < mean(report) - 0.05


def mean(report) -> float:
    return sum(c.merged for c in report.concepts) / len(report.concepts)


def test_the_refinement_raises_retention_and_reports_its_way(
    demo: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the points that it learns from: so few, at this size, teach little about others, which bench/quality.py measures."""
    monkeypatch.setattr(stage_plan, "NEGATIVE_EVERY", 0)
    for paths in ("stopping_paths", "measuring_paths"):
        monkeypatch.setattr(stages, paths, stages.learning_paths)
    recording = RecordingOptions(paths=4, steps=6, renoised=0, guidance=4.0, height=64, width=64)
    asked = request(demo, "fox-face", "pizza", recording=recording)
    refined = merge_loras(
        replace(asked, options={"steps": 40, "batch_size": 6, "scenes": 2, "learning_rate": 0.001}), host
    ).report
    assert mean(refined) > mean(merge_loras(asked, host).report) + 0.03
    assert refined.refinement["steps"] == 40
    assert all(0 < check["contrast"] < 1 for check in refined.refinement["checks"])
    retention = [check["retention"] for check in refined.refinement["checks"]]
    assert retention[-1] > retention[0]


def test_the_order_of_the_loras_changes_nothing(demo: Path, host: Host, fox_and_pizza: Merge) -> None:
    turned = merge_loras(request(demo, "pizza", "fox-face"), host)
    for key, factors in fox_and_pizza.factors.items():
        # torch 2.1 multiplies no half precision on a CPU
        torch.testing.assert_close(turned.factors[key].to(torch.float32).dense(), factors.to(torch.float32).dense())
    assert [c.name for c in turned.report.concepts] == ["pizza", "fox-face"]
    assert [c.merged for c in reversed(turned.report.concepts)] == [c.merged for c in fox_and_pizza.report.concepts]


def test_the_same_request_gives_the_same_bytes(demo: Path, host: Host, fox_and_pizza: Merge) -> None:
    options = {"steps": 3, "batch_size": 4, "scenes": 2}
    asked = request(demo, "fox-face", "pizza", options=options)
    first, second = (file_bytes(merge_loras(asked, host)) for _ in range(2))
    assert first == second
    other_seed = file_bytes(merge_loras(replace(asked, seed=1), host))
    assert first != other_seed


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"paper"}))  # paper stops 50 small steps from zero, by design
def test_a_lora_merged_alone_comes_back_at_its_weight(demo: Path, host: Host, method: str) -> None:
    asked = request(demo, "fox-face", method=method, options={}, precision="fp32", kept=1.0)
    alone = concept(demo, "fox-face", te_weight=0.7, unet_weight=0.7)
    options = {"steps": 2, "batch_size": 2} if method == "contrastive" else {}
    merge = merge_loras(replace(asked, concepts=(alone,), options=options), host)
    prompt = "a photo of a sks animal on a green background"
    expected = predict(host, merge.inputs[0].deltas, prompt)
    change = float((expected - predict(host, {}, prompt)).norm())
    assert float((predict(host, merge.factors, prompt) - expected).norm()) < 0.02 * change


def test_a_style_without_trigger_survives_next_to_a_subject(demo: Path, host: Host) -> None:
    report = merge_loras(request(demo, "fox-face", "style-mono"), host).report
    style = report.concepts[1]
    assert style.trigger == ""
    assert style.merged > 0.3
    ignored = [concept(demo, "fox-face"), concept(demo, "style-mono", kind="subject", trigger="mono")]
    as_subject = merge_loras(replace(request(demo, "fox-face"), concepts=tuple(ignored)), host)
    assert predict_difference(host, as_subject) < predict_difference(
        host, merge_loras(request(demo, "fox-face", "style-mono"), host)
    ), "a style acts on prompts that do not call it, a subject must not"


def test_a_subject_survives_next_to_a_style_without_trigger(demo: Path, host: Host) -> None:
    assert merge_loras(request(demo, "fox-face", "style-mono"), host).report.concepts[0].merged > 0.3


def predict_difference(host: Host, merge: Merge) -> float:
    prompt = "a photo of a cat"
    return float((predict(host, merge.factors, prompt) - predict(host, {}, prompt)).norm())


def test_a_weak_concept_is_kept_beside_a_strong_one(demo: Path, host: Host) -> None:
    """At a weight of 0.4 it has a sixth of the effect; were all measured in one unit, it would be given up for the other."""
    weak = concept(demo, "pizza", te_weight=0.4, unet_weight=0.4)
    report = merge_loras(replace(request(demo, "fox-face"), concepts=(concept(demo, "fox-face"), weak)), host).report
    assert min(c.merged for c in report.concepts) > 0
    assert report.kept[0] > 0.99


def test_the_report_says_who_is_taken_for_whom(demo: Path, host: Host, fox_and_pizza: Merge) -> None:
    report = fox_and_pizza.report
    for c in report.concepts:
        assert c.recognised == c.taken_for.get(c.name, 0.0)
        assert sum(c.taken_for.values()) == pytest.approx(1)
        assert set(c.taken_for) <= {"fox-face", "pizza", ""}
    assert {pair[:2] for pair in report.together} == {("fox-face", "pizza"), ("pizza", "fox-face")}
    assert all(0 <= share <= 1 for *_, share in report.together)
    alone = merge_loras(request(demo, "fox-face", method="weighted_sum", options={}), host).report
    assert (alone.concepts[0].taken_for, alone.concepts[0].recognised) == ({"fox-face": 1.0}, 1.0)
    assert alone.together == ()


def test_a_refined_merge_is_cut_to_the_rank_that_was_asked_for(demo: Path, host: Host) -> None:
    """By what enters the layers of the refined model; each concept keeps its share there."""
    recording = RecordingOptions(paths=1, steps=2, renoised=2, guidance=4.0, height=64, width=64)
    asked = request(demo, "fox-face", "pizza", recording=recording, precision="fp32")
    asked = replace(asked, options={"steps": 1, "batch_size": 1, "scenes": 0})
    full, cut, few = (
        merge_loras(replace(asked, **c), host).report for c in ({"rank": "full"}, {"kept": 0.95}, {"rank": "2"})
    )
    assert full.kept == (1.0, 1.0)
    assert 0.95 <= cut.kept[0] < cut.kept[1] < 1
    assert few.rank[2] == 2 < cut.rank[1] < full.rank[1]
    assert few.kept[0] < cut.kept[0]


def test_rank_full_leaves_nothing_out(demo: Path, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against what the method itself returned, layer by layer; truncation by energy would lose a share of each."""
    solved: dict[str, Factors] = {}
    method = METHODS["ridge"]

    def listening(problem, options):
        result = method.function(problem, options)
        solved[problem.key] = result.factors
        return result

    monkeypatch.setitem(METHODS, "ridge", replace(method, function=listening))
    asked = request(demo, "fox-face", "pizza", method="ridge", options={}, rank="full", precision="fp32")
    merge = merge_loras(asked, host)
    assert set(merge.factors) == set(solved)
    for key, factors in merge.factors.items():
        expected = solved[key].dense()
        assert float((factors.dense() - expected).norm()) <= 1e-5 * float(expected.norm()), key


def test_the_automatic_rank_keeps_the_share_it_states(demo: Path, host: Host, fox_and_pizza: Merge) -> None:
    report = fox_and_pizza.report
    least, _ = report.kept
    assert least >= fox_and_pizza.request.kept - 1e-5  # float rounding in the running sum
    smaller = merge_loras(request(demo, "fox-face", "pizza", kept=0.9), host).report
    assert smaller.rank[1] < report.rank[1]
    assert smaller.kept[0] >= 0.9
    assert merge_loras(request(demo, "fox-face", "pizza", rank="3"), host).report.rank[2] == 3


class InterruptAt(Progress):
    """Asks to stop when a stage begins."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.reached = stage, False

    def start(self, stage: Stage, total: int) -> None:
        self.reached = self.reached or stage is self.stage

    def interrupted(self) -> bool:
        return self.reached


STAGES = (
    *(Stage.RECORDING, Stage.TEXT_LAYERS, Stage.UNET_INPUTS, Stage.HOLDING_BACK),
    *(Stage.REFINING, Stage.CUTTING, Stage.MEASURING),
)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.value)
def test_an_interrupt_in_any_stage_leaves_the_model_as_it_was(demo: Path, host: Host, stage: Stage) -> None:
    before = predict(host, {}, "a photo of a cat")
    asked = request(demo, "fox-face", "pizza", options={"steps": 2, "batch_size": 2, "scenes": 2})
    with pytest.raises(Interrupted):
        merge_loras(asked, host, InterruptAt(stage))
    assert torch.equal(predict(host, {}, "a photo of a cat"), before)
    for layer in host.layers().values():
        assert not layer.module._forward_hooks and not layer.module._forward_pre_hooks
        assert isinstance(layer.weight, torch.nn.Parameter)


def test_a_lora_of_another_family_is_refused_by_name(demo: Path, host: Host, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    wide = {f"{key}.lora_up.weight": torch.zeros(64, 4), f"{key}.lora_down.weight": torch.zeros(4, 2048)}
    save_file(wide, tmp_path / "xl.safetensors")
    asked = replace(
        request(demo, "fox-face"), concepts=(concept(demo, "fox-face", lora=str(tmp_path / "xl.safetensors")),)
    )
    with pytest.raises(LoraclrError, match=r"xl\.safetensors does not fit .*\(SD1\).* It looks like a LoRA for SDXL"):
        merge_loras(asked, host)


def test_the_same_file_under_two_names_is_refused(demo: Path, host: Host, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((demo / "loras" / "fox-face.safetensors").read_bytes())
    pair = (concept(demo, "fox-face"), concept(demo, "fox-face", lora=str(copy), trigger="other words"))
    with pytest.raises(LoraclrError, match="is the same LoRA as"):
        merge_loras(replace(request(demo, "fox-face"), concepts=pair), host)


def test_measuring_a_file_agrees_with_the_report_of_its_merge(
    demo: Path, host: Host, fox_and_pizza: Merge, tmp_path: Path
) -> None:
    path = tmp_path / "merged.safetensors"
    path.write_bytes(file_bytes(fox_and_pizza))
    report = measure_loras(request(demo, "fox-face", "pizza"), host, str(path))
    for measured, reported in zip(report.concepts, fox_and_pizza.report.concepts, strict=True):
        assert measured.merged == pytest.approx(reported.merged, abs=2e-3)
        assert measured.all_tags == pytest.approx(reported.all_tags, abs=1e-6)


def test_all_tags_together_have_the_retention_of_the_weighted_sum(demo: Path, host: Host) -> None:
    report = merge_loras(
        request(demo, "fox-face", "pizza", method="weighted_sum", options={}, precision="fp32"), host
    ).report
    for c in report.concepts:
        assert c.merged == pytest.approx(c.all_tags, abs=1e-3)


def test_factors_are_rounded_to_the_files_precision(fox_and_pizza: Merge) -> None:
    assert {f.up.dtype for f in fox_and_pizza.factors.values()} == {DTYPES["fp16"]}


def test_the_sum_of_factors_is_exact() -> None:
    generator = torch.Generator().manual_seed(1)
    parts = [
        Factors(*(torch.randn(s, generator=generator, dtype=torch.float64) for s in ((5, r), (r, 7)))) for r in (2, 3)
    ]
    torch.testing.assert_close(concatenate(parts).dense(), parts[0].dense() + parts[1].dense())
