"""HTTP: `/loraclr/v1/…`, only with `--api`. Names in, never paths; every answer is JSON. Described in docs/api.md."""

from __future__ import annotations

import base64
import hmac
import io
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import wraps
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from modules import shared
from pydantic import VERSION, BaseModel, Field

from ...errors import LoraclrError
from ...hosts.running import (
    InstalledCheckpoint,
    InstalledLora,
    find_lora,
    installed_loras,
    loaded_family,
)
from ...request import MergeRequest, schema
from ...solving import METHODS, Procedure
from . import adding, jobs, keeping, naming, settings, wording
from . import check as checking
from .catalogue import obstacle, require_fitting
from .openapi import EXAMPLE, request_schema


def _typed(schema_: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a `Field` whose schema says more than its Python type: pydantic 1 and 2 (Forge's) take it in two ways.

    The fields are described and not parsed by pydantic, so that a mistake is answered with the text that every door shows.
    """
    return {"json_schema_extra": schema_} if VERSION.startswith("2") else schema_


class MergeBody(BaseModel):
    """What to merge."""

    request: dict[str, Any] = Field(..., **_typed(request_schema()))
    add_to: str = Field(
        "",
        description="A LoRA that LoRACLR merged, to go on from: the request's concepts are added to those that are in it, and "
        "what else the request leaves out is as its recipe has it.",
    )
    preview: bool | None = Field(None, description="Whether to draw pictures; as in the settings if left out.")


class KeepBody(BaseModel):
    """Where to."""

    name: str = Field(description="Name inside the LoRA (or checkpoint) folder; sub-folders separated by /.")
    overwrite: bool = Field(False, description="Replace a LoRA of that name; a checkpoint takes the next free name.")
    sheet: bool | None = Field(
        None,
        description="Whether the picture to judge it by is written too, as NAME.report.png; as in the settings if left out.",
    )


def add(app: FastAPI) -> None:
    """Add the routes to the WebUI's server."""
    options = shared.cmd_opts
    guarded = [Depends(_authenticate)] if options.api_auth else []
    router = APIRouter(prefix="/loraclr/v1", tags=["LoRACLR"], dependencies=guarded)
    router.add_api_route("/loras", _answer(loras), methods=["GET"])
    router.add_api_route("/methods", _answer(methods), methods=["GET"])
    # pydantic 1 and 2 disagree about the place of examples, too
    example = {"requestBody": {"content": {"application/json": {"example": {"request": EXAMPLE}}}}}
    router.add_api_route("/check", _answer(check), methods=["POST"], openapi_extra=example)
    router.add_api_route("/merge", _answer(merge), methods=["POST"], openapi_extra=example)
    router.add_api_route("/jobs/{job_id}", _answer(status), methods=["GET"])
    router.add_api_route("/jobs/{job_id}/interrupt", _answer(interrupt), methods=["POST"])
    router.add_api_route("/jobs/{job_id}/result", _answer(result), methods=["GET"])
    router.add_api_route("/jobs/{job_id}/keep", _answer(keep), methods=["POST"])
    router.add_api_route("/jobs/{job_id}/put_back", _answer(put_back), methods=["POST"])
    router.add_api_route("/jobs/{job_id}/discard", _answer(discard), methods=["POST"])
    app.include_router(router)


def _authenticate(asked: Request, credentials: HTTPBasicCredentials = Depends(HTTPBasic())) -> None:  # noqa: B008  (FastAPI's way)
    """The credentials of `--api-auth`, as the WebUI's own routes ask for them (`modules/api/api.py`); a job is theirs."""
    known = dict(pair.split(":", 1) for pair in shared.cmd_opts.api_auth.split(",") if ":" in pair)
    password = known.get(credentials.username, "")
    same = hmac.compare_digest(password.encode(), credentials.password.encode())
    if not (same and credentials.username in known):
        raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})
    asked.state.loraclr_user = credentials.username


def _owner(asked: Request) -> str:
    """Whose jobs a request begins and finds; without credentials everybody who may use HTTP at all is one."""
    return f"http {getattr(asked.state, 'loraclr_user', '')}"


class _Missing(Exception):
    """No such job."""


def _answer(route: Callable[..., Any]) -> Callable[..., Any]:
    """The route, its errors as JSON like those of the WebUI's own routes: `error` (the kind) and `detail` (the text)."""

    @wraps(route)
    def answered(*arguments: Any, **named: Any) -> Any:
        try:
            return route(*arguments, **named)
        except _Missing as error:
            return JSONResponse({"error": "NoSuchJob", "detail": str(error)}, 404)
        except jobs.NameTaken as error:
            return JSONResponse({"error": "NameTaken", "detail": wording.plain(str(error))}, 409)
        except LoraclrError as error:
            return JSONResponse({"error": "LoraclrError", "detail": wording.plain(str(error))}, 400)

    return answered


def loras(rescan: bool = False) -> list[dict[str, Any]]:
    """The installed LoRAs; `obstacle` says why one cannot be merged on the loaded checkpoint."""
    return [_described(lora) for lora in installed_loras(rescan=rescan)]


def _described(lora: InstalledLora) -> dict[str, Any]:
    return {
        "name": lora.name,
        "alias": lora.alias,
        "folder": lora.folder,
        "family": lora.family,
        "trigger": lora.trigger,
        "trigger_is_guess": lora.trigger_is_guess,
        "licence": lora.licence,
        "obstacle": obstacle(lora),
    }


def methods() -> list[dict[str, Any]]:
    """The merge methods, each with the schema of its options."""
    return [
        {
            "name": method.name,
            "label": method.label,
            "summary": method.summary,
            "source": method.source,
            "options": [{**asdict(item), "type": item.type.__name__} for item in schema(method.options)],
        }
        for method in METHODS.values()
    ]


def check(body: MergeBody) -> dict[str, Any]:
    """What a merge would do: obstacles, warnings, licences, expected time and size. Nothing is merged."""
    job, base = _job(body)
    found = checking.check(job.request, job.names, draw=job.draw, base=base)
    told = asdict(found)
    del told["overlap"], told["overlap_note"]  # nobody asked for it
    return {
        **told,
        "seconds": {stage.value: seconds for stage, seconds in found.seconds.items()},
        "possible": found.possible,
        "expected_seconds": sum(found.seconds.values()),
    }


def merge(body: MergeBody, asked: Request) -> dict[str, str]:
    """Begin a merge, after those that wait already; ask for the job's status with the id that is returned."""
    job, _ = _job(body, _owner(asked))
    jobs.start(job)
    return {"id": job.id}


def _job(body: MergeBody, owner: str = "") -> tuple[jobs.Job, adding.Base | None]:
    """What is asked for, and what it goes on from."""
    base = adding.base(body.add_to) if body.add_to else None
    request = MergeRequest.from_dict(_whole(body.request, base)).seeded()
    found = [find_lora(concept.lora) for concept in request.concepts]
    for lora in found:
        require_fitting(lora)
    concepts = [replace(c, lora=str(lora.path)) for c, lora in zip(request.concepts, found, strict=True)]
    draw = settings.value("loraclr_preview") if body.preview is None else body.preview
    names = tuple(lora.name for lora in found)
    job = jobs.Job(
        replace(request, concepts=tuple(concepts)), names, draw, owner=owner, adds_to=base.lora if base else None
    )
    try:
        job.request.check()
    except LoraclrError as error:
        raise LoraclrError(jobs.shown(error, job)) from error
    Procedure.of(request)
    if base:
        base.require_added(job.request)
    return job, base


def _whole(asked: dict[str, Any], base: adding.Base | None) -> dict[str, Any]:
    """A request with what it leaves out, as far as another one or the settings say it; LoRAs by their names."""
    memory = {"memory_mb": int(settings.value("loraclr_memory"))}
    if base is None:
        return {**memory, **asked}
    recipe = base.request.to_dict()
    there = [
        {**own, "lora": concept.label} for own, concept in zip(recipe["concepts"], base.request.concepts, strict=True)
    ]
    added = asked.get("concepts", [])
    if not isinstance(added, list):
        return {**memory, **asked}  # which says what is wrong with it
    return {**recipe, **memory, **asked, "concepts": [*there, *added]}


def _find(job_id: str, asked: Request) -> jobs.Job:
    """The job, if it was begun with the same credentials; of others' it is not even said that they are there."""
    job = jobs.find(job_id, _owner(asked))
    if job is None:
        raise _Missing(f"There is no job {job_id!r}: ids come from /loraclr/v1/merge, and are forgotten after a while.")
    return job


def status(job_id: str, asked: Request) -> dict[str, Any]:
    """How far a merge is. `state`: queued, running, finished, saving, failed, interrupted, kept, put back, discarded."""
    job, family = _find(job_id, asked), loaded_family()
    return {
        "id": job.id,
        "state": job.state,
        "progress": job.fraction(),
        "text": job.text(),
        "error": job.error or None,
        "loras": list(job.names),
        "add_to": job.went_on_from or None,
        "family": family.name if family else None,
    }


def interrupt(job_id: str, asked: Request) -> dict[str, Any]:
    """Stop a merge after the current evaluation of the model; everything is as it was."""
    jobs.interrupt(_find(job_id, asked))
    return status(job_id, asked)


def result(job_id: str, asked: Request, preview: bool = True) -> dict[str, Any]:
    """The report of a finished merge, a free name for its file, and its picture (PNG, base64)."""
    job = _find(job_id, asked)
    held = job.result  # somebody may decide on it meanwhile
    if held is None:
        raise LoraclrError(f"There is no result: the merge is {job.state}.")
    pictures = held.pictures if preview else None
    return {
        "id": job.id,
        "report": asdict(held.merge.report),
        "seed": job.request.seed,
        "size": held.size,
        "free_name": _free_name(job),
        "preview": _encoded(pictures.sheet) if pictures else None,
    }


def _free_name(job: jobs.Job) -> str | None:
    """A name that is free; None where the sub-folder of the settings is none that a file may be in."""
    try:
        return naming.free_whole_name(job.names, job.request.save_as)
    except LoraclrError:
        return None


def _encoded(picture: Any) -> str:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()


def keep(job_id: str, body: KeepBody, asked: Request) -> dict[str, Any]:
    """Write the file; the new LoRA is usable at once, a new checkpoint is listed. What it replaced can be put back."""
    job = _find(job_id, asked)
    with_sheet = bool(settings.value("loraclr_sheet")) if body.sheet is None else body.sheet
    kept = jobs.keep(job, body.name, overwrite=body.overwrite, with_sheet=with_sheet)
    if isinstance(kept, InstalledCheckpoint):
        return {"name": kept.name, "title": kept.title}
    return {
        **_described(kept),
        "tag": f"<lora:{kept.alias}:1>",
        "can_be_put_back": keeping.can_be_put_back(job.written),
    }


def put_back(job_id: str, asked: Request) -> dict[str, Any]:
    """Delete what was kept, and put back the file, card and pictures that it replaced."""
    jobs.put_back(_find(job_id, asked))
    return status(job_id, asked)


def discard(job_id: str, asked: Request) -> dict[str, Any]:
    """Let go of a result; nothing is written."""
    jobs.discard(_find(job_id, asked))
    return status(job_id, asked)
