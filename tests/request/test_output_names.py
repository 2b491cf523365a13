"""Where a merged file may go: never out of its folder, and under no name that a system or a prompt reserves."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_loraclr.errors import LoraclrError
from lib_loraclr.request.output_names import clean_name, output_path


def link(source: Path, target: Path) -> None:
    """A symbolic link, or no test where the system allows none (Windows without developer mode)."""
    try:
        source.symlink_to(target, target_is_directory=target.is_dir())
    except OSError as error:
        pytest.skip(f"no symbolic links here: {error}")


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("zoo", "zoo.safetensors"),
        ("zoo.safetensors", "zoo.safetensors"),
        ("zoo.SafeTensors", "zoo.safetensors"),
        ("zoo.v1.5", "zoo.v1.5.safetensors"),
        ("animals/zoo", "animals/zoo.safetensors"),
        ("зоопарк 動物園", "зоопарк 動物園.safetensors"),
        ("console", "console.safetensors"),
    ],
)
def test_a_name_leads_to_a_file_inside_the_folder(tmp_path: Path, name: str, inside: str) -> None:
    assert output_path(tmp_path, name) == tmp_path / inside


@pytest.mark.parametrize("name", ["../zoo", "a/../../zoo", "..", ".", "", "a//zoo", "./zoo", ".safetensors", "a/"])
def test_a_name_that_leaves_the_folder_or_has_an_empty_part_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        LoraclrError, match=r"output name '.*' leaves .* or has an empty part: give a name like my-merge"
    ):
        output_path(tmp_path, name)


@pytest.mark.parametrize(
    "name", ["/etc/zoo", "C:/zoo", "C:zoo", "C:\\zoo", "\\\\server\\share\\zoo", "//server/share/z"]
)
def test_a_path_of_its_own_is_refused_on_every_system(tmp_path: Path, name: str) -> None:
    with pytest.raises(LoraclrError, match=r"output name '.*' is a path of its own: give a name inside"):
        output_path(tmp_path, name)


@pytest.mark.parametrize(
    "name",
    ["con", "NUL", "aux.v2", "animals/COM1", "lpt9", "zo<o", "zo>o", "zoo:1", 'z"o', "z|o", "z?o", "z*o", "z\\o"]
    + ["..\\zoo", "z\no", "z\0o", " zoo", "zoo ", "zoo.", "animals /zoo"],
    ids=repr,
)
def test_names_that_a_file_system_or_a_prompt_reserves_are_refused_on_every_system(tmp_path: Path, name: str) -> None:
    with pytest.raises(LoraclrError, match="(?s)output name '.*' has characters that .* reserve: use letters, digits"):
        output_path(tmp_path, name)


@pytest.mark.parametrize("name", ["z" * 250, "動" * 80, "animals/" + "z" * 250], ids=["ascii", "wide", "sub-folder"])
def test_a_name_longer_than_file_systems_take_is_refused(tmp_path: Path, name: str) -> None:
    """The limit is 255 bytes, and the temporary file and the report have longer names than the LoRA."""
    with pytest.raises(LoraclrError, match="output name '.*' is too long"):
        output_path(tmp_path, name)


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder, outside = tmp_path / "loras", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    link(folder / "way-out", outside)
    link(folder / "zoo.safetensors", outside / "zoo.safetensors")
    for name in ("way-out/zoo", "zoo"):
        with pytest.raises(LoraclrError, match=rf"output name '{name}' leads outside .* through a link"):
            output_path(folder, name)


def test_a_folder_may_itself_be_a_link_and_hold_links_into_itself(tmp_path: Path) -> None:
    (tmp_path / "disk" / "animals").mkdir(parents=True)
    link(tmp_path / "loras", tmp_path / "disk")
    link(tmp_path / "disk" / "pets", tmp_path / "disk" / "animals")
    assert output_path(tmp_path / "loras", "pets/zoo") == tmp_path / "loras" / "pets" / "zoo.safetensors"


@pytest.mark.parametrize(
    "name", ["zo\x7fo", "zoo\u202eexe", "z\u200bo", "\ud800", "z\x85o", "z\u2028o", "a\ufeff/zoo"], ids=repr
)
def test_characters_that_nobody_sees_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(LoraclrError, match="has characters that nobody sees: write it anew"):
        output_path(tmp_path, name)
    assert output_path(tmp_path, clean_name(name)).parent == tmp_path, "a proposed name is one that is taken"


@pytest.mark.parametrize("name", ["COM\u00b9", "lpt\u00b3.txt", "conout$", "con .x", "CLOCK$"])
def test_names_of_windows_devices_are_refused_however_they_are_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(LoraclrError, match="reserve"):
        output_path(tmp_path, name)


def test_a_path_that_is_too_long_with_its_sub_folders_is_refused(tmp_path: Path) -> None:
    assert output_path(tmp_path, "/".join(["a" * 100] * 5)), "control"
    with pytest.raises(LoraclrError, match="too long with its sub-folders: give one of at most 600 bytes"):
        output_path(tmp_path, "/".join(["a" * 100] * 7))
