"""The HTTP routes, on an application without a WebUI around it."""

from __future__ import annotations

import base64
import dataclasses
import io
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from webui_doors import SMALL, Doors

from lib_loraclr.files.tensor_files import read_header
from lib_loraclr.output.saving import read_recipe
from lib_loraclr.request.merge_request import Concept, MergeRequest, RecordingOptions
from lib_loraclr.request.prompts import PromptOptions

pytest.importorskip("fastapi", reason="fastapi is not installed here; it comes with the WebUI")
pytest.importorskip("httpx", reason="httpx is not installed here; it comes with the WebUI")

ROUTES = [
    ("GET", "/loras"),
    ("GET", "/methods"),
    ("POST", "/check"),
    ("POST", "/merge"),
    ("GET", "/jobs/x"),
    ("POST", "/jobs/x/interrupt"),
    ("GET", "/jobs/x/result"),
    ("POST", "/jobs/x/keep"),
    ("POST", "/jobs/x/put_back"),
    ("POST", "/jobs/x/discard"),
]


class Client:
    """A WebUI with the routes on its application."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, **options: Any) -> None:
        from fastapi import FastAPI
        from fastapi.testclient import TestClient

        self.doors = Doors(folder, patch, **options)
        self.doors.lora("fox", **{"modelspec.trigger_phrase": "sks animal"})
        self.doors.lora("penguin")
        self.doors.lora("big", ss_base_model_version="sdxl_base_v1-0")
        self.webui = FastAPI()
        self.doors.webui.shared.OptionInfo = None
        start = self.doors.module("start")
        if start.has_routes():  # as scripts/loraclr.py
            start.add_routes(None, self.webui)
        self._client = TestClient(self.webui)

    def ask(self, method: str, path: str, body: Any = None, **named: Any) -> tuple[int, Any]:
        answer = self._client.request(method, f"/loraclr/v1{path}", json=body, **named)
        return answer.status_code, answer.json()

    def merged(self, **changes: Any) -> str:
        """The id of a finished job."""
        body = {"request": {**SMALL, "concepts": [{"lora": "fox"}, {"lora": "penguin"}], **changes}, "preview": True}
        status, answer = self.ask("POST", "/merge", body)
        assert status == 200, answer
        end = time.monotonic() + 60
        while self.ask("GET", f"/jobs/{answer['id']}")[1]["state"] in ("queued", "running") and time.monotonic() < end:
            time.sleep(0.05)
        return answer["id"]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    return Client(tmp_path / "Lora", monkeypatch)


@pytest.mark.parametrize(("flags", "there"), [({"api": False}, False), ({"api": False, "nowebui": True}, True)])
def test_routes_are_there_with_api_or_nowebui_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], there: bool
) -> None:
    status, _ = Client(tmp_path / "Lora", monkeypatch, **flags).ask("GET", "/loras")
    assert (status == 200) is there


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_asks_for_the_credentials_of_api_auth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    closed = Client(tmp_path / "Lora", monkeypatch, api_auth="me:secret,you:other")
    body = {"name": "x", "request": {"concepts": [{"lora": "fox"}], **SMALL}} if method == "POST" else None
    assert closed.ask(method, path, body)[0] == 401
    for wrong in (("me", "other"), ("nobody", ""), ("me", ""), ("mé", "sécret")):
        assert closed.ask(method, path, body, auth=wrong)[0] == 401
    for right in (("me", "secret"), ("you", "other")):
        assert closed.ask(method, path, body, auth=right)[0] in (200, 400, 404)


def test_the_list_above_is_every_route(client: Client) -> None:
    told = {
        (method.upper(), path): of
        for path, all_of in client.webui.openapi()["paths"].items()
        for method, of in all_of.items()
    }
    assert set(told) == {(m, "/loraclr/v1" + p.replace("/x", "/{job_id}")) for m, p in ROUTES}
    assert all(of["description"] for of in told.values())
    for path in ("/check", "/merge"):  # what /docs offers to try
        example = told["POST", f"/loraclr/v1{path}"]["requestBody"]["content"]["application/json"]["example"]
        assert len(MergeRequest.from_dict(example["request"]).concepts) == 2


def _described(client: Client) -> dict[str, Any]:
    """The schema of a merge request in the WebUI's description of its routes."""
    return client.webui.openapi()["components"]["schemas"]["MergeBody"]["properties"]["request"]


def test_every_field_of_a_request_is_described_with_its_type(client: Client) -> None:
    described = _described(client)
    parts = {MergeRequest: described["properties"]}
    for name, cls in (("prompts", PromptOptions), ("recording", RecordingOptions)):
        parts[cls] = described["properties"][name]["properties"]
    parts[Concept] = described["properties"]["concepts"]["items"]["properties"]
    for cls, properties in parts.items():
        assert list(properties) == [field.name for field in dataclasses.fields(cls)]
        assert all(field["description"] and field["type"] for field in properties.values()), cls
    assert described["required"] == ["concepts"]
    assert parts[Concept]["kind"]["enum"] == ["subject", "style"] and parts[Concept]["lora"]["example"] == "fox-face"
    [contrastive] = [m for m in described["properties"]["options"]["anyOf"] if m["title"] == "contrastive"]
    margin = contrastive["properties"]["margin"]
    assert (margin["type"], margin["minimum"], margin["maximum"], margin["default"]) == ("number", 0.0, 2.0, 1.0)
    assert len(MergeRequest.from_dict(described["example"]).concepts) == 2


def test_the_ranges_that_are_described_are_those_that_are_held(client: Client) -> None:
    described = _described(client)["properties"]
    ranges = {name: of for name, of in described["recording"]["properties"].items() if "maximum" in of}
    assert len(ranges) == 7
    for name, of in ranges.items():
        for value, right in ((of["minimum"], True), (of["maximum"], True), (of["maximum"] + 64, False)):
            body = {
                "request": {**SMALL, "concepts": [{"lora": "fox"}], "recording": {**SMALL["recording"], name: value}}
            }
            told = client.ask("POST", "/check", body)[1].get("detail", "")
            assert (f"recording.{name} is" not in told) is right, (name, value, told)


def test_loras_have_names_and_no_paths(client: Client) -> None:
    status, found = client.ask("GET", "/loras")
    assert status == 200 and [lora["name"] for lora in found] == ["big", "fox", "penguin"]
    assert "made for SDXL" in found[0]["obstacle"] and found[1]["trigger"] == "sks animal"
    assert str(client.doors.folder) not in str(found)


def test_methods_have_the_schema_of_their_options(client: Client) -> None:
    _, found = client.ask("GET", "/methods")
    [contrastive] = [method for method in found if method["name"] == "contrastive"]
    effort = contrastive["options"][0]
    assert (
        effort["name"] == "effort"
        and effort["type"] == "str"
        and effort["choices"] == ["layers", "fast", "balanced", "thorough"]
    )
    assert {"minimum": 0.0, "maximum": 2.0} in [
        {key: option[key] for key in ("minimum", "maximum")} for option in contrastive["options"]
    ]


def test_check_says_what_would_happen(client: Client) -> None:
    status, found = client.ask("POST", "/check", {"request": {**SMALL, "concepts": [{"lora": "fox"}]}})
    assert status == 200 and found["possible"] and found["findings"][0]["trigger"] == "sks animal"
    assert found["file_mb"] > 0 and found["expected_seconds"] > 0


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"concepts": [{"lora": "big"}]}, "made for SDXL"),
        ({"concepts": [{"lora": "/etc/passwd"}]}, "There is no installed LoRA"),
        ({"concepts": [{"lora": "fox", "wieght": 1}]}, "wieght"),
        ({"concepts": []}, "nothing to merge"),
        ({"concepts": [{"lora": "fox"}], "method": "contrasive"}, "did you mean 'contrastive'"),
        ({"concepts": [{"lora": "fox"}], "options": {"magin": 1}}, "did you mean 'margin'"),
        ({"concepts": [{"lora": "fox"}], "memory_mb": "lots"}, "memory_mb"),
        ({"concepts": "fox"}, "give a list"),
    ],
)
def test_mistakes_are_400_with_the_same_text_as_everywhere(client: Client, request_: Any, message: str) -> None:
    for path in ("/check", "/merge"):
        status, answer = client.ask("POST", path, {"request": request_})
        assert status == 400 and answer["error"] == "LoraclrError" and message in answer["detail"]


def test_a_path_is_no_name(client: Client) -> None:
    path = str(client.doors.folder / "fox.safetensors")
    assert client.ask("POST", "/merge", {"request": {"concepts": [{"lora": path}]}})[0] == 400


def test_merge_result_keep(client: Client) -> None:
    job = client.merged()
    status, found = client.ask("GET", f"/jobs/{job}/result")
    assert status == 200 and found["free_name"] == "fox-penguin" and found["size"] > 0
    assert [concept["name"] for concept in found["report"]["concepts"]] == ["fox", "penguin"]
    assert Image.open(io.BytesIO(base64.b64decode(found["preview"]))).width > 100
    assert client.ask("GET", f"/jobs/{job}/result?preview=false")[1]["preview"] is None
    status, answer = client.ask("POST", f"/jobs/{job}/keep", {"name": "fox"})
    assert status == 409 and answer["error"] == "NameTaken"
    assert client.ask("POST", f"/jobs/{job}/keep", {"name": "../out"})[0] == 400
    status, answer = client.ask("POST", f"/jobs/{job}/keep", {"name": "made/pair"})
    assert status == 200 and answer["tag"] == "<lora:pair:1>" and answer["folder"] == "made"
    assert (client.doors.folder / "made" / "pair.safetensors").is_file()
    assert client.ask("GET", f"/jobs/{job}")[1]["state"] == "kept"
    assert client.ask("GET", f"/jobs/{job}/result")[0] == 400


def test_a_seed_of_minus_one_is_another_each_time(client: Client) -> None:
    seeds = []
    for _ in range(2):
        job = client.merged(seed=-1)
        seeds.append(client.ask("GET", f"/jobs/{job}/result")[1]["seed"])
        client.ask("POST", f"/jobs/{job}/keep", {"name": f"drawn {len(seeds)}"})
        made = read_header(client.doors.folder / f"drawn {len(seeds)}.safetensors")
        assert read_recipe(made.metadata, "it")[0].seed == seeds[-1], "and the recipe has it"
    assert len({*seeds}) == 2 and min(seeds) >= 0


def test_a_checkpoint_is_kept_under_a_free_name_and_answered_with_its_title(client: Client) -> None:
    base = client.doors.webui.write_checkpoint()
    for name in ("tiny-2", "tiny-3"):
        job = client.merged(save_as="checkpoint")
        status, answer = client.ask("POST", f"/jobs/{job}/keep", {"name": "tiny", "overwrite": True})
        assert (status, answer) == (200, {"name": name, "title": f"{name}.safetensors"})
        assert (base.parent / f"{name}.safetensors").stat().st_size > base.stat().st_size
    job = client.merged(save_as="checkpoint")
    assert client.ask("POST", f"/jobs/{job}/keep", {"name": "../out"})[0] == 400
    (base.parent / "fox-penguin.safetensors").write_bytes(b"")
    assert client.ask("GET", f"/jobs/{job}/result")[1]["free_name"] == "fox-penguin-2"


def test_discard_and_a_job_that_is_not_there(client: Client) -> None:
    job = client.merged()
    assert client.ask("POST", f"/jobs/{job}/discard")[1]["state"] == "discarded"
    assert client.ask("POST", f"/jobs/{job}/discard")[0] == 400
    status, answer = client.ask("GET", "/jobs/nobody")
    assert status == 404 and answer["error"] == "NoSuchJob"
    assert sorted(path.name for path in client.doors.folder.rglob("*")) == [
        "big.safetensors",
        "fox.safetensors",
        "penguin.safetensors",
    ]


def test_interrupt_before_it_began(client: Client) -> None:
    with client.doors.webui.call_queue.queue_lock:
        body = {"request": {**SMALL, "concepts": [{"lora": "fox"}, {"lora": "penguin"}]}}
        job = client.ask("POST", "/merge", body)[1]["id"]
        client.ask("POST", f"/jobs/{job}/interrupt")
    end = time.monotonic() + 30
    while client.ask("GET", f"/jobs/{job}")[1]["state"] == "queued" and time.monotonic() < end:
        time.sleep(0.02)
    assert client.ask("GET", f"/jobs/{job}")[1]["state"] == "interrupted"


def test_a_job_is_found_with_the_credentials_it_was_begun_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = Client(tmp_path / "Lora", monkeypatch, api_auth="me:secret,you:other")
    me, you = {"auth": ("me", "secret")}, {"auth": ("you", "other")}
    body = {"request": {**SMALL, "concepts": [{"lora": "fox"}, {"lora": "penguin"}]}, "preview": False}
    job = closed.ask("POST", "/merge", body, **me)[1]["id"]
    end = time.monotonic() + 60
    while closed.ask("GET", f"/jobs/{job}", **me)[1]["state"] != "finished" and time.monotonic() < end:
        time.sleep(0.05)
    for method, path in ROUTES[4:]:
        told = {"name": "x"} if path.endswith("keep") else None
        assert closed.ask(method, path.replace("/x", f"/{job}"), told, **you)[0] == 404
    assert closed.ask("POST", f"/jobs/{job}/keep", {"name": "pair"}, **me)[0] == 200


def test_replace_and_put_back(client: Client) -> None:
    before = (client.doors.folder / "fox.safetensors").read_bytes()
    job = client.merged()
    assert client.ask("POST", f"/jobs/{job}/put_back")[0] == 400
    status, answer = client.ask("POST", f"/jobs/{job}/keep", {"name": "fox", "overwrite": True})
    assert status == 200 and answer["can_be_put_back"] is True
    assert (client.doors.folder / "fox.safetensors").read_bytes() != before
    status, answer = client.ask("POST", f"/jobs/{job}/put_back")
    assert (status, answer["state"]) == (200, "put back")
    assert (client.doors.folder / "fox.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "/etc/x",
        "C:/x",
        "C:\\x",
        "\\\\server\\x",
        "con",
        "aux.txt",
        "COM\u00b9",
        "a\x00b",
        "a\nb",
        "a\x7fb",
    ]
    + [
        "\u202ex",
        "a" * 300,
        "/".join(["a" * 100] * 9),
        "",
        ".",
        "a /x",
        "x.",
        "a:b",
        "a*b",
        "<b>",
        'a"b',
        "a|b",
        "linked/x",
    ],
    ids=repr,
)
def test_a_name_over_http_leads_nowhere_else_and_is_told_without_the_folder(client: Client, name: str) -> None:
    outside = client.doors.folder.parent / "outside"
    outside.mkdir()
    try:
        (client.doors.folder / "linked").symlink_to(outside, target_is_directory=True)
    except OSError:
        if name == "linked/x":
            pytest.skip("no symbolic links here")
    job = client.merged()
    before = sorted(client.doors.folder.parent.rglob("*"))
    status, answer = client.ask("POST", f"/jobs/{job}/keep", {"name": name})
    assert status == 400 and "output name" in answer["detail"] and str(client.doors.folder) not in answer["detail"]
    assert sorted(client.doors.folder.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["動物園", "зоо/парк", "مرحبا", "café & co's", "-rf", "$(x)"])
def test_a_name_of_any_language_is_kept(client: Client, name: str) -> None:
    job = client.merged()
    status, answer = client.ask("POST", f"/jobs/{job}/keep", {"name": name})
    assert status == 200 and answer["name"] == name.rsplit("/", 1)[-1]
    assert (client.doors.folder / f"{name}.safetensors").is_file()


def test_a_licence_that_forbids_merging_or_selling_is_shown_by_check(client: Client) -> None:
    client.doors.lora("closed", **{"modelspec.license": "CC-BY-NC-ND-4.0"})
    asked = {"request": {**SMALL, "concepts": [{"lora": "fox"}, {"lora": "closed"}]}}
    status, found = client.ask("POST", "/check", asked)
    said = [warning for warning in found["warnings"] if "CC-BY-NC-ND-4.0" in warning]
    assert status == 200 and found["possible"] and len(said) == 2
    assert "closed is under CC-BY-NC-ND-4.0, which forbids merging" in said[0] and "forbids selling" in said[1]
    asked["request"]["concepts"].pop()
    assert not any("forbids" in warning for warning in client.ask("POST", "/check", asked)[1]["warnings"]), "control"
