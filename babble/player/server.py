"""The local page of `babble live`: a web application for this machine only, at a secret address.

    app = make_app(voices, secret)

Routes, all below /SECRET/, so that nobody without the address reaches them:

    GET  /               the page and its parts, from page/
    WS   /play           one session: it sends a block of sound for every "more", and takes changes; below
    POST /prompt/ID      an audio file that session ID continues: dropped onto the page, or from its microphone
    GET  /save/ID        the last minute of session ID as a zip

Messages to /play are JSON: {"more": true}, {"settings": {...}}, {"prompt": "random"}, {"voice": "NAME"}. It sends JSON
{"session": ID, ...} at the start and after every prompt or voice, {"error": "..."}, and blocks: four bytes, the length
of a JSON object, the object, and then the samples, int16. A session ends when its page closes the connection.
"""

import asyncio
import contextlib
import json
import secrets
import socket
import struct
import tempfile
import time
import webbrowser
from collections import deque
from pathlib import Path
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from babble.generation.prompts import Prompt, read_frames
from babble.player.session import Block, Session, Settings, Voices
from babble.run_folder import PRETRAINED

PAGE = Path(__file__).parent / "page"
HOST = "127.0.0.1"
# Names that the browser may use for this machine: others could be a web page that rebinds its name to it.
HOSTS = [HOST, "localhost"]
# The page may ask for this much more sound than has passed in time: it fills its buffer at the start.
AHEAD_SECONDS = 5.0
MAX_UPLOAD_BYTES = 50_000_000
MAX_MESSAGE_BYTES, MAX_MESSAGES_PER_SECOND = 4096, 100
MAX_SESSIONS = 8
# WebSocket close codes: 1008, a message that breaks the rules; 1013, try again later.
POLICY, TRY_AGAIN = 1008, 1013
HEADERS = {
    # No request leaves this machine, and no other page frames this one.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; "
    "connect-src 'self' ws://127.0.0.1:* ws://localhost:*; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def pack_block(block: Block, times_real_time: float) -> bytes:
    """Return a block as the page reads it."""
    about = {
        "pitch": block.pitch_hz,
        "energy": block.energy_db,
        "alarms": block.alarms,
        "speed": round(times_real_time, 1),
    }
    header = json.dumps(about).encode()
    # Samples on an even byte, as Int16Array needs.
    header += b" " * (len(header) % 2)
    return struct.pack("<I", len(header)) + header + block.pcm.astype("<i2").tobytes()


def parse_message(text: str) -> tuple[str, Any]:
    """Return the one key and value of a message.

    Raises:
        ValueError: it is no such message.
    """
    try:
        ((key, value),) = json.loads(text).items()
    except (ValueError, AttributeError):
        raise ValueError("a message is a JSON object with one key") from None
    expected = {"more": bool, "settings": dict, "prompt": str, "voice": str}
    if key not in expected or not isinstance(value, expected[key]):
        raise ValueError(f"a message has one of the keys {', '.join(expected)}, with a value of its type")
    return key, value


def parse_settings(values: dict[str, Any]) -> Settings:
    """Return the settings of a message.

    Raises:
        ValueError: an unknown key or a value of another type.
    """
    text = dict.fromkeys(("temperature", "top_p", "min_p", "what_if"), str)
    types: dict[str, type | tuple[type, ...]] = {**text, "token_temperature": (int, float), "guard": bool}
    for key, value in values.items():
        if key not in types or not isinstance(value, types[key]):
            raise ValueError(f"settings are {', '.join(types)}: text, a number, and true or false")
    return Settings(**values)


class _Sessions:
    """The sessions of all open pages."""

    def __init__(self, voices: Voices) -> None:
        self.voices = voices
        self.open: dict[str, Session] = {}

    async def play(self, socket: WebSocket) -> None:
        """Serve one page until it closes."""
        # A page of another origin could open a connection, if it knew the address.
        origin = socket.headers.get("origin", "")
        if origin != f"http://{socket.headers.get('host')}":
            await socket.close(POLICY)
            return
        await socket.accept()
        if len(self.open) >= MAX_SESSIONS:
            await socket.close(TRY_AGAIN, f"{MAX_SESSIONS} pages are open; close one of them")
            return
        name = secrets.token_urlsafe(8)
        try:
            session = await asyncio.to_thread(Session, self.voices, secrets.randbits(31))
            self.open[name] = session
            await self._serve(socket, name, session)
        except WebSocketDisconnect:
            pass
        finally:
            self.open.pop(name, None)

    async def _serve(self, socket: WebSocket, name: str, session: Session) -> None:
        async def describe() -> None:
            await socket.send_json({"session": name, **session.describe()})

        await describe()
        started, sent_seconds, speed = time.monotonic(), 0.0, 0.0
        latest: deque[float] = deque(maxlen=MAX_MESSAGES_PER_SECOND)
        while True:
            text = await socket.receive_text()
            now = time.monotonic()
            try:
                if len(latest) == MAX_MESSAGES_PER_SECOND and now - latest[0] < 1:
                    raise ValueError(f"more than {MAX_MESSAGES_PER_SECOND} messages in a second")
                key, value = parse_message(text)
            except ValueError as error:
                await socket.close(POLICY, str(error))
                return
            latest.append(now)
            if key != "more":
                try:
                    await asyncio.to_thread(_change, session, key, value)
                except (ValueError, OSError) as error:
                    await socket.send_json({"error": str(error)})
                if key != "settings":
                    await describe()
                continue
            if sent_seconds > time.monotonic() - started + AHEAD_SECONDS:
                await socket.close(POLICY, "asked for more sound than can be played")
                return
            block = await asyncio.to_thread(session.next_block)
            latest_speed = session.block_seconds / max(time.monotonic() - now, 1e-6)
            speed = latest_speed if not speed else 0.9 * speed + 0.1 * latest_speed
            sent_seconds += session.block_seconds
            await socket.send_bytes(pack_block(block, speed))

    async def upload(self, request: Request) -> Response:
        """Have a session continue the audio file in the body."""
        session = self.open.get(request.path_params["session"])
        if session is None:
            return JSONResponse({"error": "this page is not connected; reload it"}, 404)
        too_large = JSONResponse(
            {"error": f"the file is larger than {MAX_UPLOAD_BYTES // 1_000_000} MB"}, 413, {"Connection": "close"}
        )
        if int(request.headers.get("content-length", 0)) > MAX_UPLOAD_BYTES:
            return too_large
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > MAX_UPLOAD_BYTES:
                return too_large
        try:
            prompt = await asyncio.to_thread(_read_upload, bytes(data), request.query_params.get("name", ""), session)
            await asyncio.to_thread(session.continue_from, prompt)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse(session.describe())

    async def save(self, request: Request) -> Response:
        """Return the last minute of a session as a zip."""
        session = self.open.get(request.path_params["session"])
        if session is None:
            return JSONResponse({"error": "this page is not connected; reload it"}, 404)
        packed = await asyncio.to_thread(session.save)
        attachment = {"Content-Disposition": 'attachment; filename="babble.zip"'}
        return Response(packed, media_type="application/zip", headers={**HEADERS, **attachment})


def _change(session: Session, key: str, value: Any) -> None:
    if key == "settings":
        session.change(parse_settings(value))
    elif key == "voice":
        session.choose_voice(value)
    else:
        if value not in session.prompts:
            raise ValueError(f"prompt {value!r}: must be one of {', '.join(session.prompts)}")
        session.continue_from(session.find_prompt(value))


def _read_upload(data: bytes, name: str, session: Session) -> Prompt:
    """Return an uploaded audio file as a prompt; its name is only shown."""
    shown = Path(name).name or "the recording"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"upload{Path(shown).suffix[:8]}"
        path.write_bytes(data)
        try:
            return Prompt(read_frames(path, session.mode), shown)
        except (ValueError, OSError) as error:
            raise ValueError(str(error).replace(str(path), shown)) from None


def make_app(voices: Voices, secret: str) -> Starlette:
    """Return the web application.

    Args:
        voices: to choose from.
        secret: the first part of every path.
    """
    sessions = _Sessions(voices)

    async def page(request: Request) -> Response:
        path = PAGE / request.path_params.get("name", "index.html")
        # Only the files that are there, by their names.
        if path.name not in {known.name for known in PAGE.iterdir()}:
            return Response("not found", 404)
        return FileResponse(path, headers=HEADERS)

    routes = [
        Route("/", page),
        WebSocketRoute("/play", sessions.play),
        Route("/prompt/{session}", sessions.upload, methods=["POST"]),
        Route("/save/{session}", sessions.save),
        Route("/{name}", page),
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    return Starlette(routes=[Mount(f"/{secret}", routes=routes)], middleware=[hosts])


class _Server(uvicorn.Server):
    """Prints the address once it can be opened."""

    def __init__(self, config: uvicorn.Config, address: str, opens_browser: bool) -> None:
        super().__init__(config)
        self._address, self._opens_browser = address, opens_browser

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(f"{self._address}\nOpen this address in a browser on this computer. Ctrl-C ends it.", flush=True)
        if self._opens_browser:
            webbrowser.open(self._address)


def serve(run: Path | None, runs: Path, port: int | None, *, opens_browser: bool) -> None:
    """Serve the page until Ctrl-C.

    Args:
        run: run folder or checkpoint; None for the bundled voice.
        runs: folder of runs, whose voices the page offers too.
        port: None for a free one.
        opens_browser: whether to open the page in the user's browser.

    Raises:
        FileNotFoundError, ValueError: the run has no usable checkpoint.
        OSError: the port is in use.
    """
    voices = Voices(run or PRETRAINED, runs)
    voices.load(voices.names[0])
    # Frame by frame, more threads only slow it down.
    torch.set_num_threads(1)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port or 0))
    except OSError as error:
        raise OSError(f"--port {port}: {error.strerror}. Choose another, or omit the flag.") from None
    secret = secrets.token_urlsafe(16)
    address = f"http://{HOST}:{listener.getsockname()[1]}/{secret}/"
    settings = uvicorn.Config(
        make_app(voices, secret),
        # The address is secret, so it is in no log.
        access_log=False,
        log_level="warning",
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_max_queue=8,
        timeout_graceful_shutdown=1,
    )
    with contextlib.suppress(KeyboardInterrupt):  # The usual end.
        _Server(settings, address, opens_browser).run(sockets=[listener])
    print("Ended.")
