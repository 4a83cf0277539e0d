"""The page's server: what it answers, and what it leaves behind."""

import io
import socket
import tempfile
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from werkzeug.test import Client

from ea_psmnet.app import engine as engine_module
from ea_psmnet.app.server import StereoApp, serve

SIZE = (40, 72)


def png(seed=0, size=SIZE):
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return cv2.imencode(".png", image)[1].tobytes()


def upload(data=None, name="left.png"):
    return io.BytesIO(png() if data is None else data), name


def pair(**changes):
    return {"left": upload(), "right": upload(png(1), "right.png")} | changes


@pytest.fixture
def client(engine, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return Client(StereoApp(engine, 200_000))


@pytest.fixture
def predict(client, tmp_path):
    def send(data, status=200):
        response = client.post("/predict", data=data)
        assert response.status_code == status, response.text
        assert list((tmp_path / "temporary").iterdir()) == [], "uploads are removed"
        return response.json

    return send


def test_the_page_needs_nothing_from_elsewhere(client):
    response = client.get("/")
    assert response.status_code == 200
    for word in ("http://", "https://", "src=", "@import"):
        assert word not in response.text
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]


def test_a_pair_is_predicted_and_its_files_can_be_fetched(client, predict):
    told = predict(pair())
    assert (told["width"], told["height"]) == SIZE[::-1]
    assert told["camera"] is None
    raw = client.get(f"/results/{told['id']}/disparity.f32").data
    disparity = np.frombuffer(raw, "<f4").reshape(SIZE)
    assert told["range"] == [float(disparity.min()), float(disparity.max())]
    for name in (*told["downloads"], "left.png"):
        response = client.get(f"/results/{told['id']}/{name}?download")
        assert response.status_code == 200
        assert name in response.headers["Content-Disposition"]
    assert not any("cloud" in name for name in told["downloads"])


@pytest.mark.parametrize(
    "given",
    [
        {"focal": "70", "baseline": "0.5"},
        {"calib": (io.BytesIO(b"70 0 36 0 70 20 0 0 1\n0.5\n"), "K.txt")},
    ],
)
def test_a_calibration_gives_depth_and_a_cloud(given, predict):
    told = predict(pair(**given))
    assert told["camera"]["f"] == 70
    assert told["camera"]["baseline"] == 0.5
    assert {name.split("_")[1] for name in told["downloads"]} >= {"depth.png", "cloud.ply"}


def test_two_scales(predict, client):
    plain, finer = predict(pair()), predict(pair(two_scales="on"))
    maps = [client.get(f"/results/{told['id']}/disparity.f32").data for told in (plain, finer)]
    assert maps[0] != maps[1]


def test_one_file_with_both_views(predict):
    told = predict({"left": upload(png(size=(40, 144)), "both.png"), "layout": "side-by-side"})
    assert (told["name"], told["width"]) == ("both", 72)


@pytest.mark.slow
def test_an_example_is_rendered(predict, client, monkeypatch):
    monkeypatch.setattr(engine_module, "_EXAMPLE", (48, 64))
    first, second = (predict({"example": number}) for number in ("1", "2"))
    assert first["name"] == "example-1"
    images = [client.get(f"/results/{told['id']}/left.png").data for told in (first, second)]
    assert images[0] != images[1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "choose a left and a right image"),
        ({"left": upload()}, "choose a left and a right image"),
        ({"left": upload(b"no image", "a b.png"), "right": upload()}, "a_b.png: damaged"),
        ({"left": upload(name="x.exe"), "right": upload()}, "x.exe: expected .png"),
        (pair(right=upload(png(size=(40, 60)))), "the images differ in size"),
        (pair(layout="diagonal"), "unknown layout 'diagonal'"),
        (pair(weights="../../etc/passwd"), "unknown weights"),
        (pair(precision="double"), "unknown precision"),
        (pair(focal="70"), "both focal length and baseline"),
        (pair(focal="wide", baseline="1"), "expected numbers"),
        (pair(calib=upload(b"nothing", "c.txt")), "c.txt"),
        (pair(calib=upload(b"{}", "c.json")), "c.json: "),
        (pair(calib=upload(b"1", "c.txt"), focal="7", baseline="1"), "not both"),
        ({"example": "-1"}, "up to six digits"),
    ],
)
def test_wrong_input_has_one_clear_line(data, message, predict):
    error = predict({k: (io.BytesIO(v[0].getvalue()), v[1]) if isinstance(v, tuple) else v
                     for k, v in data.items()}, 400)["error"]  # fmt: skip
    assert message in error
    assert "\n" not in error
    assert "/tmp" not in error


def test_large_uploads_are_refused(predict):
    assert "more than" in predict(pair(left=upload(b"\0" * 300_000)), 413)["error"]


def test_a_failure_harms_no_other_request(predict, engine, monkeypatch):
    monkeypatch.setattr(engine, "_predict", lambda *_: 1 / 0)
    assert "internal error" in predict(pair(), 500)["error"]
    monkeypatch.undo()


def test_files_outside_of_results_are_not_served(client, predict):
    told = predict(pair())
    for name in ("..%2f..%2fetc%2fpasswd", "none.png", ".."):
        assert client.get(f"/results/{told['id']}/{name}").status_code in (404, 308)
    assert client.get("/results/0/left.png").json == {
        "error": "this result is no longer there: predict again"
    }


def test_old_results_are_removed(predict, engine, monkeypatch):
    monkeypatch.setattr(engine_module, "_KEPT", 2)
    ids = [predict(pair())["id"] for _ in range(3)]
    assert [engine.file(each, "left.png") is not None for each in ids] == [False, True, True]
    assert len(list(engine._folder.iterdir())) == 2


def test_pages_from_elsewhere_cannot_use_it(client):
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 403
    for origin in ("http://evil.example", "null"):  # null: a sandboxed frame of any page
        elsewhere = {"Host": "127.0.0.1:7860", "Origin": origin}
        assert client.post("/predict", data=pair(), headers=elsewhere).status_code == 403


def test_on_all_addresses_the_machine_answers_to_all_its_own(engine):
    client = Client(StereoApp(engine, 200_000, ["0.0.0.0"]))
    for host, status in (
        ("192.168.1.20:7860", 200),
        ("[fe80::1]:7860", 200),
        (socket.gethostname(), 200),
        ("evil.example", 403),
    ):
        assert client.get("/", headers={"Host": host}).status_code == status
    named = Client(StereoApp(engine, 200_000, ["MyBox"]))
    assert named.get("/", headers={"Host": "mybox"}).status_code == 200


def test_nothing_is_left_at_the_end(matcher):
    with engine_module.Engine() as made:
        folder = Path(made._folder)
        assert folder.is_dir()
    assert not folder.exists()


def test_two_users_at_once(engine):
    import urllib.request

    server = serve(engine, "127.0.0.1", 0, 10**6)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    answers = []

    def ask():
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/choices") as answer:
            answers.append(answer.status)

    users = [threading.Thread(target=ask) for _ in range(2)]
    try:
        with engine._lock:  # a prediction is going on
            for user in users:
                user.start()
            for user in users:
                user.join(20)
        assert answers == [200, 200]
        with pytest.raises(OSError, match=r"^127.0.0.1, port \d+: .*: give another --host"):
            serve(engine, "127.0.0.1", server.port, 10**6)
    finally:
        server.shutdown()
        server.server_close()


def test_a_right_image_beside_a_file_of_both_views_is_refused(predict):
    error = predict(pair(layout="side-by-side"), 400)["error"]
    assert error == "side-by-side: one file has both views: leave out the right image"


def test_warnings_name_no_folder_of_the_machine(predict):
    told = predict(pair(focal="3000", baseline="10"))
    assert any("exceed" in warning for warning in told["warnings"])
    assert "/" not in " ".join(told["warnings"]).replace("depth/", "")


def test_an_engine_that_has_ended_predicts_no_more(engine, predict):
    predict(pair())
    engine.__exit__()
    assert predict(pair(), 400)["error"] == "the server ends: start it again"
    assert not engine._folder.exists()


def test_a_doubled_slash_is_redirected(client):
    response = client.get("//choices")
    assert response.status_code == 308
    assert response.headers["Location"] == "http://localhost/"
