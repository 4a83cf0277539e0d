"""The server of the page, for one machine and its users: WSGI on werkzeug."""

from __future__ import annotations

import io
import ipaddress
import json
import re
import socket
import tempfile
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

from werkzeug import Request, Response
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import BadRequest, Forbidden, HTTPException, NotFound
from werkzeug.exceptions import RequestEntityTooLarge as TooLarge
from werkzeug.routing import Map, RequestRedirect, Rule
from werkzeug.serving import BaseWSGIServer, make_server

from ea_psmnet.app.engine import Engine, Order, weights
from ea_psmnet.console import is_out_of_memory
from ea_psmnet.files import IMAGE_SUFFIXES, write_image
from ea_psmnet.inference.inputs import Layout, PairSource
from ea_psmnet.inference.outputs import colour_table
from ea_psmnet.machine import Precision
from ea_psmnet.pair_lists import pair_name
from ea_psmnet.tables import check_choice, format_bytes

_CALIBRATION_SUFFIXES = (".txt", ".yml", ".yaml", ".xml", ".json")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_EVERY_ADDRESS = ("0.0.0.0", "::")
_TYPES = {".png": "image/png", ".f32": "application/octet-stream", ".txt": "text/plain"}
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; form-action 'none'; frame-ancestors 'none'"
)


class _Request(Request):
    max_form_parts = 20


class StereoApp:
    """The page as a WSGI application.

    Uploads are files of the request alone; results are those of the engine. A request that fails
    has an answer of its own: wrong input 400 with one line, too much 413, an error of the program
    500.

    Args:
        engine: Predicts.
        limit: Largest upload in bytes.
        hosts: Names by which browsers may reach the server, besides those of the loopback: others
            are refused, so that pages from elsewhere cannot use it through the browser. 0.0.0.0 and
            :: stand for all addresses and the names of this machine.
    """

    def __init__(self, engine: Engine, limit: int, hosts: Iterable[str] = ()) -> None:
        self._engine, self._limit = engine, limit
        names = {host.lower() for host in hosts}
        self._hosts = {*_LOOPBACK, *names}
        self._any_address = bool(names & set(_EVERY_ADDRESS))
        if self._any_address:
            name = socket.gethostname().lower()
            self._hosts |= {name, f"{name}.local", socket.getfqdn().lower()}
        answers: Mapping[str, tuple[str, Callable[..., Response]]] = {
            "/": ("GET", self._page),
            "/choices": ("GET", self._choices),
            "/predict": ("POST", self._predict),
            "/results/<result>/<name>": ("GET", self._file),
        }
        self._routes = Map(
            [
                Rule(path, endpoint=answer, methods=[method])
                for path, (method, answer) in answers.items()
            ]
        )

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        request = _Request(environ)
        request.max_content_length = self._limit
        try:
            response = self._answer(request)
        except TooLarge:
            text = f"more than {format_bytes(self._limit)}: use smaller images"
            response = _json({"error": text}, 413)
        except RequestRedirect as error:
            response = error.get_response(environ)
        except HTTPException as error:
            response = _json({"error": error.description}, error.code or 500)
        except Exception as error:
            response = _failure(error)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Cache-Control"] = "no-store"
        return response(environ, start)

    def _answer(self, request: Request) -> Response:
        host = urlsplit(f"//{request.host}").hostname
        origin = request.headers.get("Origin")  # `null` from sandboxed pages of anywhere
        known = host in self._hosts or (self._any_address and _is_address(host))
        if not known:
            raise Forbidden(f"{host} is not an address of this server: give it as --host")
        if origin and urlsplit(origin).netloc != request.host:
            raise Forbidden("requests from other pages are refused")
        endpoint, values = self._routes.bind_to_environ(request.environ).match()
        response: Response = endpoint(request, **values)
        return response

    def _page(self, request: Request) -> Response:
        page = files("ea_psmnet.app").joinpath("page.html").read_text(encoding="utf-8")
        return Response(page, mimetype="text/html")

    def _choices(self, request: Request) -> Response:
        return _json(
            {
                "weights": weights(),
                "precisions": get_args(Precision),
                "layouts": get_args(Layout),
                "limit": self._limit,
                "suffixes": IMAGE_SUFFIXES,
                "turbo": colour_table().tolist(),
            }
        )

    def _file(self, request: Request, result: str, name: str) -> Response:
        path = self._engine.file(result, name)
        if path is None:
            raise NotFound("this result is no longer there: predict again")
        kind = _TYPES.get(path.suffix, "application/octet-stream")
        response = Response(path.read_bytes(), mimetype=kind)
        if "download" in request.args:
            response.headers.set("Content-Disposition", "attachment", filename=name)
        return response

    def _predict(self, request: Request) -> Response:
        form = request.form
        for name, choices in (("weights", weights()), ("precision", get_args(Precision)),
                              ("layout", get_args(Layout))):  # fmt: skip
            check_choice(name, form.get(name, choices[0]), choices)
        with tempfile.TemporaryDirectory(prefix="ea_psmnet-upload-") as folder:
            order = Order(
                self._source(request, Path(folder)),
                form.get("weights", weights()[0]),
                form.get("precision", "auto"),  # type: ignore[arg-type]
                "two_scales" in form,
                _saved(request, Path(folder), "calib", _CALIBRATION_SUFFIXES),
                _numbers(form),
            )
            told = self._engine.predict(order)
            told["warnings"] = [_without_folder(warning) for warning in told["warnings"]]
            return _json(told)

    def _source(self, request: Request, folder: Path) -> PairSource:
        """The pair of a request, as files in a folder."""
        layout = request.form.get("layout", "separate")
        if "example" in request.form:
            number = request.form["example"]
            if not number.isdecimal() or len(number) > 6:
                raise BadRequest("the number of an example has up to six digits")
            paths = [folder / "left.png", folder / "right.png"]
            for path, view in zip(paths, self._engine.example(int(number)), strict=True):
                write_image(path, view)
            return PairSource(f"example-{int(number)}", paths[0], paths[1])
        views = [_saved(request, folder, view, IMAGE_SUFFIXES) for view in ("left", "right")]
        if not views[0] or (layout == "separate" and not views[1]):
            raise BadRequest(
                "choose a left and a right image, or one file with both views and its layout"
            )
        left = views[0][0]
        if layout != "separate":
            if views[1]:
                raise BadRequest(f"{layout}: one file has both views: leave out the right image")
            return PairSource(_stem(request.files["left"]), left, left, layout)  # type: ignore[arg-type]
        names = [Path(_stem(request.files[view])) for view in ("left", "right")]
        name = pair_name(names[0], names[1])
        return PairSource(name if name != Path.cwd().name else "pair", left, views[1][0])


def _saved(request: Request, folder: Path, field: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Save the files of a field under names of letters, digits, dots and dashes."""
    paths = []
    for number, upload in enumerate(request.files.getlist(field)):
        if not upload.filename:
            continue
        suffix = Path(upload.filename).suffix.lower()
        if suffix not in suffixes:
            raise BadRequest(f"{upload.filename}: expected {', '.join(suffixes)}")
        paths.append(folder / f"{field}-{number}" / f"{_stem(upload)}{suffix}")
        paths[-1].parent.mkdir()
        upload.save(paths[-1])
    return paths


def _stem(upload: FileStorage) -> str:
    """A name for results from that of an upload: letters, digits, dots, dashes."""
    stem = Path((upload.filename or "pair").replace("\\", "/")).stem
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in stem)[:80].lstrip(".") or "pair"


def _numbers(form: Mapping[str, str]) -> dict[str, float]:
    """Calibration from the numbers of a form; empty if it has none."""
    texts = {name: form.get(name, "").strip() for name in _NUMBERS}
    try:
        numbers = {name: float(text) for name, text in texts.items() if text}
    except ValueError:
        raise BadRequest("calibration: expected numbers") from None
    if numbers and not {"focal", "baseline"} <= numbers.keys():
        raise BadRequest("a calibration needs both focal length and baseline")
    return numbers


_NUMBERS = ("focal", "baseline", "cx", "cy", "doffs")


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value), status, mimetype="application/json")


def _failure(error: Exception) -> Response:
    """The answer to wrong input, to a lack of memory, or to an error of the program."""
    if is_out_of_memory(error):
        return _json({"error": "not enough memory: use smaller images"}, 413)
    if isinstance(error, ValueError | OSError | FloatingPointError):
        return _json({"error": _without_folder(str(error))}, 400)
    traceback.print_exception(error)
    return _json({"error": "internal error; the details are in the server's log"}, 500)


def _without_folder(message: str) -> str:
    """A message that names uploads and results, and no folder of this machine."""
    return re.sub(r"[^\s']*ea_psmnet-(upload|app)-[^/\s]*/([^/\s]*/)?", "", message)


def _is_address(host: str | None) -> bool:
    """Whether a host is an IP address, which pages from elsewhere cannot make their own."""
    try:
        ipaddress.ip_address(host or "")
    except ValueError:
        return False
    return True


def serve(engine: Engine, host: str, port: int, limit: int) -> BaseWSGIServer:
    """Bind a server that answers requests in threads.

    Raises:
        OSError: The address is not one of this machine, or the port is taken.
    """
    hosts = () if host in _LOOPBACK else (host,)
    told = io.StringIO()
    try:
        with redirect_stderr(told):  # werkzeug explains a port that is taken, and exits
            return make_server(host, port, StereoApp(engine, limit, hosts), threaded=True)
    except (OSError, SystemExit) as error:
        reason = next(iter(told.getvalue().splitlines()), str(error))
        raise OSError(f"{host}, port {port}: {reason}: give another --host or --port") from None
