"""Input pictures over real HTTP: stored, given back, refused in words; requests need theirs."""

import hashlib
import io

import pytest
from PIL import Image


def picture(image_format="PNG", size=(30, 20)):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, image_format)
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
