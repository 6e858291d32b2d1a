"""The server of the live page: who reaches it, what it sends, and what it refuses."""

import io
import json
import struct
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import soundfile
from paths import SPEECH
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from babble.player import server
from babble.player.server import make_app, parse_message
from babble.player.session import Voices

SECRET = "secret"
HOST = "http://127.0.0.1:8000"


@pytest.fixture
def client(voices: Voices) -> Iterator[TestClient]:
    """A client that has the address."""
    with TestClient(make_app(voices, SECRET), HOST, headers={"origin": HOST}) as client:
        yield client


def read_block(data: bytes) -> tuple[dict[str, Any], np.ndarray]:
    (length,) = struct.unpack_from("<I", data)
    return json.loads(data[4 : 4 + length]), np.frombuffer(data[4 + length :], "<i2")


def test_the_page_and_its_parts_are_served_with_a_policy_against_requests(client: TestClient) -> None:
    for name, kind in (
        ("", "text/html"),
        ("live.js", "javascript"),
        ("worklet.js", "javascript"),
        ("style.css", "css"),
    ):
        answer = client.get(f"/{SECRET}/{name}")
        assert (answer.status_code, kind in answer.headers["content-type"]) == (200, True)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert client.get(f"/{SECRET}/server.py").status_code == 404
    assert client.get(f"/{SECRET}/..%2fserver.py").status_code == 404


def test_nobody_without_the_address_reaches_anything(client: TestClient, voices: Voices) -> None:
    for path in ("/", "/wrong/", "/wrong/live.js", "/wrong/save/x", "/live.js"):
        assert client.get(path).status_code == 404
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/wrong/play"):
        pass
    # A web page whose name was rebound to this machine.
    assert client.get(f"/{SECRET}/", headers={"host": "evil.example"}).status_code == 400
    # A web page of another origin that knows the address.
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect(
            f"/{SECRET}/play", headers={"origin": "http://evil.example", "host": "127.0.0.1:8000"}
        ),
    ):
        pass


def test_a_page_gets_a_block_for_every_request(client: TestClient) -> None:
    with client.websocket_connect(f"/{SECRET}/play", headers={"host": "127.0.0.1:8000"}) as socket:
        about = socket.receive_json()
        assert about["voices"] == ["ann", "bundled voice", "drone", "low-rate"]
        assert (about["mode"], about["rate_hz"], about["block_seconds"]) == ("1300", 8000, 0.12)
        for _ in range(3):
            socket.send_json({"more": True})
            values, pcm = read_block(socket.receive_bytes())
            assert len(pcm) == 960
            assert (len(values["pitch"]), len(values["energy"]), values["alarms"]) == (3, 3, [])
            assert values["speed"] > 0
        socket.send_json({"settings": {"what_if": "voicing=off", "temperature": "pitch=0.5", "token_temperature": 1}})
        socket.send_json({"more": True})
        assert read_block(socket.receive_bytes())[0]["pitch"] == [0, 0, 0]


def test_a_setting_that_is_wrong_is_told_and_playing_goes_on(client: TestClient) -> None:
    with client.websocket_connect(f"/{SECRET}/play", headers={"host": "127.0.0.1:8000"}) as socket:
        socket.receive_json()
        for message, error in (
            ({"settings": {"temperature": "0"}}, "temperature 0: must be above 0"),
            ({"settings": {"volume": "1"}}, "settings are temperature"),
            ({"settings": {"guard": "yes"}}, "settings are temperature"),
            ({"settings": {"token_temperature": 0}}, "token temperature 0: must be above 0"),
            ({"voice": "nobody"}, "there is no voice 'nobody'"),
            ({"prompt": "/etc/passwd"}, "must be one of silence"),
        ):
            socket.send_json(message)
            assert error in socket.receive_json()["error"]
            if "settings" not in message:
                assert socket.receive_json()["voice"] == "ann"
        socket.send_json({"more": True})
        assert len(read_block(socket.receive_bytes())[1]) == 960


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (['{"more": true}'] * 60, "asked for more sound than can be played"),
        (['{"voice": "nobody"}'] * 100, "more than 20 messages in a second"),
        (["nonsense"], "a message is a JSON object with one key"),
        (["{}"], "a message is a JSON object with one key"),
        (['{"more": 1}'], "a message has one of the keys"),
    ],
)
def test_a_page_that_breaks_the_rules_is_disconnected(
    client: TestClient, messages: list[str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "20 messages" in reason:
        # So few that a slow machine answers more than that in a second.
        monkeypatch.setattr(server, "MAX_MESSAGES_PER_SECOND", 20)
    with client.websocket_connect(f"/{SECRET}/play", headers={"host": "127.0.0.1:8000"}) as socket:
        for message in messages:
            socket.send_text(message)
        found = None
        while found is None:
            message = socket.receive()
            if message["type"] == "websocket.close":
                found = message
        assert (found["code"], reason in found["reason"]) == (server.POLICY, True)


def test_a_file_is_continued_and_the_last_minute_saved(client: TestClient) -> None:
    with client.websocket_connect(f"/{SECRET}/play", headers={"host": "127.0.0.1:8000"}) as socket:
        session = socket.receive_json()["session"]
        data = (SPEECH / "allison-01.ogg").read_bytes()
        answer = client.post(f"/{SECRET}/prompt/{session}?name=../me.ogg", content=data)
        assert (answer.status_code, answer.json()["prompt"]) == (200, "me.ogg")
        socket.send_json({"more": True})
        _, pcm = read_block(socket.receive_bytes())
        saved = client.get(f"/{SECRET}/save/{session}")
        assert "babble.zip" in saved.headers["content-disposition"]
        with zipfile.ZipFile(io.BytesIO(saved.content)) as archive:
            assert json.loads(archive.read("settings.json"))["prompt"] == "me.ogg"
            kept, _ = soundfile.read(io.BytesIO(archive.read("babble.wav")), dtype="int16")
        assert (kept == pcm).all()
    assert client.get(f"/{SECRET}/save/{session}").status_code == 404, "the page has closed"


def test_an_unusable_or_huge_file_is_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_UPLOAD_BYTES", 1_000_000)
    with client.websocket_connect(f"/{SECRET}/play", headers={"host": "127.0.0.1:8000"}) as socket:
        session = socket.receive_json()["session"]
        address = f"/{SECRET}/prompt/{session}?name=notes.txt"
        for content in (b"no sound", b""):
            answer = client.post(address, content=content)
            assert (answer.status_code, answer.json()["error"].startswith("notes.txt: ")) == (400, True)
        large = bytes(1_000_001)
        assert client.post(address, content=large).status_code == 413
        # Without a length.
        assert client.post(address, content=iter([large[:600_000], large[600_000:]])).status_code == 413
        assert client.post(f"/{SECRET}/prompt/other", content=b"").status_code == 404
        socket.send_json({"more": True})
        assert len(read_block(socket.receive_bytes())[1]) == 960


def test_pages_are_limited_in_number(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_SESSIONS", 2)
    connect: dict[str, Any] = {"url": f"/{SECRET}/play", "headers": {"host": "127.0.0.1:8000"}}
    with client.websocket_connect(**connect) as first, client.websocket_connect(**connect) as second:
        assert first.receive_json()["session"] != second.receive_json()["session"]
        with client.websocket_connect(**connect) as third:
            assert third.receive()["code"] == server.TRY_AGAIN
        first.send_json({"more": True})
        assert len(read_block(first.receive_bytes())[1]) == 960


def test_a_message_has_one_key() -> None:
    assert parse_message('{"prompt": "silence"}') == ("prompt", "silence")
    for wrong in ('{"more": true, "voice": "ann"}', "[]", "1", '{"volume": 1}', "{"):
        with pytest.raises(ValueError, match="a message"):
            parse_message(wrong)
