"""Input pictures over real HTTP: stored, given back, refused in words; requests need theirs."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from modules.api import input_routes
from modules.gallery.maps import map_of
from modules.spec.image_prompt import ImagePrompt
from tests.support.drawn_face import draw_face


def picture(image_format="PNG", size=(30, 20), **options):
    buffer = io.BytesIO()
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 3, size[1] // 3, size[0], size[1]))
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def send(server, data, **options):
    return server.client.post("/api/inputs", content=data, **options)


def test_a_picture_is_stored_and_given_back(server):
    for image_format in ("PNG", "JPEG", "WEBP"):
        data = picture(image_format)
        answer = send(server, data, headers={"Content-Type": "image/png"})
        assert answer.status_code == 201
        image = hashlib.sha256(data).hexdigest()
        assert answer.json() == {"image": image, "width": 30, "height": 20}
        back = server.client.get(f"/api/inputs/{image}")
        assert back.content == data
        assert back.headers["content-type"] == f"image/{image_format.lower()}"
        assert back.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("data", [b"", b"<script>alert(1)</script>", picture()[:60]])
def test_what_is_no_picture_is_refused(server, data):
    answer = send(server, data)
    assert answer.status_code in (400, 422)
    error = answer.json()["error"]
    assert (error["code"], error["field"]) == ("E_INPUT", "image_prompts")
    assert "no picture" in error["message"]


def test_one_that_is_too_large_is_refused(server):
    answer = send(server, b"\x89PNG" + b"x" * (25 * 1024 * 1024))
    assert answer.status_code == 413


@pytest.mark.parametrize("image", ["a" * 64, "A" * 64, "x", "..%2f..%2feasel.db", "%00"])
def test_what_is_not_there_is_not_found(server, image):
    assert server.client.get(f"/api/inputs/{image}").status_code in (404, 422)


def test_a_foreign_page_may_not_send_pictures(server):
    answer = send(server, picture(), headers={"Origin": "https://elsewhere.example"})
    assert answer.status_code == 403


def test_a_request_needs_its_pictures(server):
    image = send(server, picture()).json()["image"]
    entry = {"image": image, "type": "canny", "weight": 0.5}
    answer = server.client.post("/api/tasks", json={"image_prompts": [entry]})
    assert answer.status_code == 201
    view = server.client.get(f"/api/tasks/{answer.json()['id']}").json()
    assert view["spec"]["image_prompts"][0]["image"] == image
    answer = server.client.post("/api/tasks", json={"image_prompts": [entry, {"image": "b" * 64}]})
    assert answer.status_code in (400, 422)
    error = answer.json()["error"]
    assert error["field"] == "image_prompts"
    assert "image prompt 2 is not stored here" in error["message"]


def stored(server, data):
    return send(server, data).json()["image"]


def fetched(server, image, path="", **query):
    answer = server.client.get(f"/api/inputs/{image}{path}", params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/webp"
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))


def test_a_small_copy_is_upright_and_bounded(server):
    turned = Image.Exif()
    turned[0x0112] = 6
    image = stored(server, picture("JPEG", (900, 300), exif=turned))
    assert fetched(server, image, thumb=1).shape == (320, 107, 3)
    assert fetched(server, stored(server, picture(size=(1, 5000))), thumb=1).shape == (320, 1, 3)


@pytest.mark.parametrize("kind", ["canny", "cpds"])
def test_the_map_is_the_one_that_the_painting_follows(server, kind):
    data = picture(size=(96, 64))
    image = stored(server, data)
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    wanted = map_of(pixels, ImagePrompt(image=image, type=kind), (128, 64))
    found = fetched(server, image, "/map", type=kind, width=128, height=64)
    assert np.array_equal(found, wanted)
    assert found.min() == 0
    assert found.max() == 255
    assert fetched(server, image, "/map", type=kind).shape == (64, 96, 3)


def test_thresholds_decide_how_many_edges_are_found(server):
    steps = Image.new("L", (64, 64))
    for left in range(0, 64, 8):
        steps.paste(left * 4, (left, 0, left + 8, 64))
    buffer = io.BytesIO()
    steps.save(buffer, "PNG")
    image = stored(server, buffer.getvalue())
    many = fetched(server, image, "/map", type="canny", canny_low=1, canny_high=2)
    few = fetched(server, image, "/map", type="canny", canny_low=254, canny_high=255)
    assert many.mean() > few.mean() + 10


def test_a_map_is_made_once_and_few_are_kept(server, monkeypatch):
    image = stored(server, picture(size=(64, 48)))
    first = fetched(server, image, "/map", type="cpds")
    monkeypatch.setattr(input_routes, "map_of", None)
    assert np.array_equal(fetched(server, image, "/map", type="cpds"), first)
    folder = server.context.settings.thumbnail_path / "maps"
    assert 1 <= len(list(folder.iterdir())) <= input_routes.MAPS_KEPT


def test_the_face_is_shown_cropped_or_that_there_is_none(server):
    buffer = io.BytesIO()
    Image.fromarray(draw_face()).save(buffer, "PNG")
    image = stored(server, buffer.getvalue())
    assert fetched(server, image, "/map", type="face").shape == (512, 512, 3)
    answer = server.client.get(f"/api/inputs/{image}/map?type=face&face=2")
    assert answer.status_code == 422
    assert "shows one face" in answer.json()["error"]["message"]
    empty = stored(server, picture(size=(64, 64)))
    answer = server.client.get(f"/api/inputs/{empty}/map?type=face")
    assert "No face was found" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "query",
    ["", "type=x", "type=canny&canny_low=0", "type=canny&width=9999&height=64", "type=face&face=0"],
)
def test_a_map_that_cannot_be_is_refused(server, query):
    image = stored(server, picture())
    assert server.client.get(f"/api/inputs/{image}/map?{query}").status_code == 422


def test_what_each_type_needs_is_told_until_it_is_there(server):
    def types(checkpoint="a.safetensors"):
        answer = server.client.get(f"/api/controls?checkpoint={checkpoint}").json()
        return {entry["type"]: entry for entry in answer["types"]}

    before = types()
    usual = {name: (entry["stop"], entry["weight"]) for name, entry in before.items()}
    assert usual["image_prompt"] == (0.5, 0.6)
    assert usual["face"] == (0.9, 0.75)
    assert [need["folder"] for need in before["face"]["missing"]] == ["ipadapter", "clip_vision"]
    assert [need["size"] for need in before["face"]["optional"]] == [65_600]
    assert before["canny"]["optional"] == []
    assert before["canny"]["missing"][0]["file"] == "control-lora-canny-rank128.safetensors"
    folder = server.context.settings.models_path / "controlnet"
    folder.mkdir(parents=True)
    (folder / "mine-canny.safetensors").write_bytes(b"x")
    assert types()["canny"]["missing"] == []
    assert server.client.get("/api/controls?checkpoint=nowhere").status_code == 200
    old = server.context.settings.models_path / "checkpoints" / "old.ckpt"
    old.write_bytes(b"x")
    try:  # its family shows once it is loaded, so that no file is offered that might not fit
        assert not any(entry["missing"] for entry in types("old.ckpt").values())
    finally:
        old.unlink()
    narrow = {"model.diffusion_model.x.attn2.to_k.weight": np.zeros((8, 768), np.float16)}
    of_sd1 = server.context.settings.models_path / "checkpoints" / "z.safetensors"
    of_sd1.parent.mkdir(parents=True, exist_ok=True)
    save_file(narrow, of_sd1)
    try:
        told = types("z.safetensors")
    finally:
        of_sd1.unlink()
    assert told["cpds"]["missing"] is None
    assert told["depth"]["missing"][0]["file"] == "control_v11f1p_sd15_depth.pth"
