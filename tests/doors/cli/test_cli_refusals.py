"""One clear sentence and exit code 2 for every mistake."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from runs import Run, assert_refused, listing

# Mistakes that need no model

NO_MODEL = {
    "no LoRA": (["--output", "zoo"], ["nothing to merge", "name at least one LoRA"]),
    "no LoRA but words for one": (["--trigger", "fox=sks"], ["nothing to merge"]),
    "a weight that is no number": (["fox.safetensors:strong"], ["fox.safetensors:strong", "'strong'", "not a number"]),
    "an unknown weight": (["fox.safetensors:tee=1"], ["weight 'tee' in fox.safetensors:tee=1", "did you mean 'te'"]),
    "a dyn below 0": (["fox.safetensors:1:dyn=-8"], ["dyn of fox is -8", "0 for all"]),
    "lbw": (["fox.safetensors:1:lbw=MIDD"], ["lbw=", "leave it out"]),
    "the same LoRA twice": (["fox.safetensors", "fox.safetensors:.5"], ["fox.safetensors is named 2 times", "once"]),
    "an unknown method": (["fox.safetensors", "--method", "rigde"], ["method 'rigde'", "did you mean 'ridge'"]),
    "an unknown option": (
        ["fox.safetensors", "--method", "ridge", "--option", "rigde=1"],
        ["option 'rigde' of method ridge", "did you mean 'ridge'"],
    ),
    "another method's option": (
        ["fox.safetensors", "--method", "average", "--effort", "fast"],
        ["'effort'", "method average has none"],
    ),
    "an option out of range": (["fox.safetensors", "--margin", "9"], ["margin", "'9'", "from 0.0 to 2.0"]),
    "an option of the wrong type": (
        ["fox.safetensors", "--batch-size", "1.5"],
        ["batch_size", "'1.5'", "whole number"],
    ),
    "an unknown choice": (
        ["fox.safetensors", "--effort", "quick"],
        ["effort", "'quick'", "layers, fast, balanced, thorough"],
    ),
    "an option without value": (
        ["fox.safetensors", "--option", "margin"],
        ["--option 'margin' has no '='", "NAME=VAL"],
    ),
    "a trigger without name": (["fox.safetensors", "--trigger", "sks"], ["--trigger 'sks' has no '='", "NAME=VALUE"]),
    "a trigger of another": (["fox.safetensors", "--trigger", "fxo=sks"], ["LoRA called 'fxo'", "did you mean 'fox'"]),
    "an unknown kind": (
        ["fox.safetensors", "--kind", "fox=stile"],
        ["kind of concept 'stile'", "did you mean 'style'"],
    ),
    "an importance of 0": (["fox.safetensors", "--importance", "fox=0"], ["importance of fox is 0.0", "above 0"]),
    "an importance in words": (
        ["fox.safetensors", "--importance", "fox=big"],
        ["importance of fox is 'big'", "number"],
    ),
    "a rank of 0": (["fox.safetensors", "--rank", "0"], ["The rank is '0'", "auto, full"]),
    "a share above 1": (["fox.safetensors", "--kept", "1.5"], ["share to keep is 1.5", "up to 1"]),
    "a share in words": (["fox.safetensors", "--kept", "most"], ["--kept is 'most'", "not a number"]),
    "an unknown precision": (["fox.safetensors", "--precision", "fp8"], ["precision 'fp8'", "bf16, fp16, fp32"]),
    "no memory": (["fox.safetensors", "--memory", "0"], ["memory budget is 0 MB", "at least 1"]),
    "a negative seed": (["fox.safetensors", "--seed", "-2"], ["seed is -2", "from 0"]),
    "a size between sizes": (["fox.safetensors", "--height", "100"], ["recording.height is 100", "multiple of 64"]),
    "a template without trigger": (["fox.safetensors", "--template", "a fox"], ["'a fox'", "{trigger}"]),
    "a request that is not there": (["--request", "gone.json"], ["no request file gone.json", "check the name"]),
    "a request that is not JSON": (["--request", "broken.json"], ["broken.json", "not JSON", "line 1 column 15"]),
    "a request in another encoding": (["--request", "utf16.json"], ["utf16.json", "UTF-8"]),
    "a request with an unknown field": (["--request", "request.json"], ["'metod'", "did you mean 'method'"]),
    "a request with a number for a file": (["--request", "number.json"], ["lora in concept 1 is 5", "give text"]),
    "a recipe that is not there": (["--recipe-from", "gone.safetensors"], ["no file gone.safetensors"]),
    "a recipe from a file without": (["--recipe-from", "fox.safetensors"], ["fox.safetensors holds no LoRACLR recipe"]),
    "no output": (["fox.safetensors"], ["No output is named", "--output NAME"]),
    "an output that exists": (["fox.safetensors", "-o", "taken"], ["taken.safetensors exists already", "--overwrite"]),
    "an output beside a card": (["fox.safetensors", "-o", "request"], ["request.json exists already", "--overwrite"]),
    "an output outside its folder": (
        ["fox.safetensors", "-o", "../zoo", "--output-dir", "empty"],
        ["'../zoo' leaves empty", "give a name"],
    ),
    "an output with a path of its own": (
        ["fox.safetensors", "-o", "/zoo", "--output-dir", "empty"],
        ["'/zoo' is a path of its own", "inside empty"],
    ),
    "an output that is too long": (["fox.safetensors", "-o", "z" * 250], ["too long"]),
    "an output that is a device": (["fox.safetensors", "-o", "nul"], ["'nul'", "reserve"]),
    "no checkpoint": (["fox.safetensors", "-o", "zoo"], ["No checkpoint is named", "--checkpoint FILE"]),
    "a checkpoint that is not there": (
        ["fox.safetensors", "-o", "zoo", "--checkpoint", "gone.safetensors"],
        ["no checkpoint gone.safetensors", "check the name"],
    ),
    "the checkpoint as its own copy": (
        [
            *("fox.safetensors", "-o", "model", "--overwrite"),
            *("--save-as", "checkpoint", "--checkpoint", "model.safetensors"),
        ],
        ["model.safetensors is the checkpoint itself", "choose another name"],
    ),
    "a folder to be copied": (
        ["fox.safetensors", "-o", "zoo", "--save-as", "checkpoint", "--checkpoint", "half"],
        ["half is a diffusers folder", "single-file format"],
    ),
    "a pickled checkpoint": (
        ["fox.safetensors", "-o", "zoo", "--checkpoint", "old.pt"],
        ["old.pt is a pickle", "convert"],
    ),
    "a LoRA as checkpoint": (
        ["fox.safetensors", "-o", "zoo", "--checkpoint", "model.safetensors"],
        ["model.safetensors is a LoRA: name a checkpoint"],
    ),
    "a folder as checkpoint": (
        ["fox.safetensors", "-o", "zoo", "--checkpoint", "empty"],
        ["empty is not a diffusers folder", "unet/"],
    ),
    "a folder with half a checkpoint": (
        ["fox.safetensors", "-o", "zoo", "--checkpoint", "half"],
        ["half"],
    ),
    "a device that is not there": (
        ["fox.safetensors", "-o", "zoo", "--checkpoint", "model.safetensors", "--device", "gpu"],
        ["no device 'gpu'", "give auto, cpu, cuda, cuda:0 or mps."],
    ),
    "a device that does not work here": (
        ["fox.safetensors", "-o", "zoo", "--checkpoint", "model.safetensors", "--device", "cuda:99"],
        ["device 'cuda:99' cannot be used here", "--device cpu"],
    ),
    "a LoRA that is not there, before the checkpoint is looked at": (
        ["gone.safetensors", "-o", "zoo", "--checkpoint", "model.safetensors"],
        ["no file gone.safetensors", "check the name"],
    ),
}


@pytest.mark.parametrize(("arguments", "fragments"), NO_MODEL.values(), ids=NO_MODEL.keys())
def test_a_mistake_gets_one_sentence_with_the_name_the_value_and_the_remedy(
    run: Run, folder: Path, arguments: list[str], fragments: list[str]
) -> None:
    before = listing(folder)
    assert_refused(run("merge", *arguments), *fragments)
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ([], ["COMMAND"]),
        (["mrege"], ["mrege", "merge"]),
        (["merge", "--paths", "many"], ["--paths", "'many'"]),
        (["merge", "--memory", "1GB"], ["--memory", "'1GB'"]),
        (["merge", "--save-as", "ckpt"], ["--save-as", "'ckpt'", "checkpoint"]),
        (["merge", "--prompts", "boru"], ["--prompts", "'boru'", "booru"]),
        (["merge", "--no-such-flag"], ["--no-such-flag"]),
        (["merge", "--request", "a.json", "--recipe-from", "b.safetensors"], ["--recipe-from", "not allowed"]),
        (["inspect"], ["FILE"]),
    ],
    ids=" ".join,
)
def test_argparses_own_refusals_end_with_2_and_name_the_argument(
    run: Run, arguments: list[str], fragments: list[str]
) -> None:
    result = run(*arguments)
    assert result.code == 2
    last = result.err.splitlines()[-1]
    assert all(fragment in last for fragment in fragments), last


def test_a_checkpoints_damaged_config_is_named(run: Run, folder: Path, demo: Path) -> None:
    checkpoint = folder / "sd1.safetensors"
    shutil.copyfile(demo / "emoji-sd1.safetensors", checkpoint)
    for text in ("model: [", "other: 1", "model:\n  params: {}\n"):
        (folder / "sd1.yaml").write_text(text)
        assert_refused(run("merge", "fox.safetensors", "-o", "zoo", "--checkpoint", str(checkpoint)), "sd1.yaml")


# Mistakes that show when a LoRA is read and held against the model

BAD_LORAS = {
    "not there": (["gone.safetensors"], ["no file gone.safetensors", "check the name"]),
    "no extension": (["fox"], ["fox is not a .safetensors file"]),
    "a pickle": (["old.pt"], ["old.pt is a pickle", "convert it to .safetensors first"]),
    "not safetensors": (["page.safetensors"], ["page.safetensors is a web page", "download it again"]),
    "truncated": (["cut.safetensors"], ["cut.safetensors cannot be read as safetensors", "download it again"]),
    "lying about sizes": (["liar.safetensors"], ["liar.safetensors cannot be read as safetensors", "damaged"]),
    "NaN": (["nan.safetensors"], ["nan.safetensors holds NaN or infinity in lora_unet_conv_in.alpha", "earlier epoch"]),
    "infinity": (["inf.safetensors"], ["inf.safetensors holds NaN or infinity", "earlier epoch"]),
    "another shape": (["wide.safetensors"], ["wide.safetensors does not fit", "[320, 36]", "[64, 36]", "leave it out"]),
    "for SDXL": (["sdxl.safetensors"], ["sdxl.safetensors does not fit", "(SD1)", "LoRA for SDXL", "leave it out"]),
    "no layer in common": (
        ["alien.safetensors"],
        ["alien.safetensors does not fit", "(SD1)", "LoRA for Flux", "leave it out"],
    ),
    "half of a LoHa": (
        ["loha.safetensors"],
        ["loha.safetensors is of an unknown kind of network", "LoHa", "leave this file out"],
    ),
    "one LoRA by two names": (["fox.safetensors", "copy.safetensors"], ["copy.safetensors is the same LoRA as fox"]),
    "all weights 0": (["fox.safetensors:0", "cat.safetensors:0"], ["All weights are 0", "another weight"]),
    "the same trigger": (
        ["fox.safetensors", "twin.safetensors"],
        ["fox and twin have the same prompts", "other trigger"],
    ),
    "the same own prompts": (
        ["fox.safetensors", "cat.safetensors", "--concept-prompt", "fox=a pet", "--concept-prompt", "cat=a pet"],
        ["fox and cat have the same prompts"],
    ),
}


@pytest.mark.parametrize(("arguments", "fragments"), BAD_LORAS.values(), ids=BAD_LORAS.keys())
@pytest.mark.usefixtures("loaded")
def test_a_lora_that_cannot_be_merged_gets_one_sentence(
    run: Run, folder: Path, arguments: list[str], fragments: list[str]
) -> None:
    before = listing(folder)
    assert_refused(run("merge", *arguments, "-o", "zoo"), *fragments)
    assert listing(folder) == before


@pytest.mark.usefixtures("loaded")
def test_measure_refuses_a_bad_merged_file_by_name(run: Run, folder: Path) -> None:
    for name in ("cut.safetensors", "old.pt", "sdxl.safetensors", "gone.safetensors"):
        assert_refused(run("measure", "fox.safetensors", "--merged", name), name)


def test_inspect_refuses_what_it_cannot_read(run: Run, folder: Path) -> None:
    for name in ("cut.safetensors", "old.pt", "nan.safetensors", "gone.safetensors", "page.safetensors"):
        assert_refused(run("inspect", name), name)
