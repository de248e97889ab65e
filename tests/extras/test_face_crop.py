"""Faces are found where they are drawn, and come out upright with their eyes in place."""

import cv2
import numpy as np
import pytest

from extras.face_crop import BORDER, LEFT_EYE, RIGHT_EYE, Face, crop_face, find_faces
from extras.training import picturebook
from tests.support.drawn_face import draw_face, eyes_of


@pytest.mark.parametrize("size", [200, 300, 512])
@pytest.mark.parametrize("tilt", [-8.0, 0.0, 15.0])
def test_a_face_is_found_with_its_eyes(size, tilt):
    (face,) = find_faces(draw_face(size, tilt))
    assert np.abs(np.array(face.points) - eyes_of(size, tilt)).max() < 0.04 * size
    left, top, width, height = face.box
    assert left < size / 2 < left + width
    assert top < size / 2 < top + height


@pytest.mark.parametrize("tilt", [-55.0, -30.0, 30.0, 55.0])
def test_a_tilted_head_is_found_and_comes_out_upright(tilt):
    image = draw_face(300, tilt)
    (face,) = find_faces(image)
    assert np.abs(np.array(face.points) - eyes_of(300, tilt)).max() < 0.05 * 300
    (again,) = find_faces(crop_face(image, face))
    (left, right) = again.points
    assert abs(right[1] - left[1]) < 0.1 * (right[0] - left[0])


@pytest.mark.parametrize("tilt", [0.0, 30.0])
def test_in_a_large_picture_a_face_is_where_it_is(tilt):
    size = 1500
    image = cv2.resize(draw_face(512, tilt), (size, size), interpolation=cv2.INTER_LINEAR)
    (face,) = find_faces(image)
    assert np.abs(np.array(face.points) - np.array(eyes_of(512, tilt)) * size / 512).max() < 75.0
    left, top, width, height = face.box
    assert abs(left + width / 2 - size / 2) < 0.15 * size
    assert abs(top + height / 2 - size / 2) < 0.15 * size
    assert 0.4 * size < width < size


def test_a_drawn_page_has_no_face():
    faces = [find_faces(picturebook.draw(seed, size=(256, 256)).image) for seed in range(8)]
    assert not any(faces)


@pytest.mark.parametrize("tilt", [0.0, 15.0])
def test_a_crop_has_the_eyes_where_the_data_set_has_them(tilt):
    image = draw_face(300, tilt)
    (face,) = find_faces(image)
    crop = crop_face(image, face)
    assert crop.shape == (512, 512, 3)
    (again,) = find_faces(crop)
    wanted = np.array([LEFT_EYE, RIGHT_EYE])
    assert np.abs(np.array(again.points) - wanted).max() < 30.0
    assert crop_face(image, face, 128).shape == (128, 128, 3)


def test_of_several_the_largest_comes_first():
    small = np.pad(draw_face(200), ((50, 50), (0, 0), (0, 0)), mode="edge")
    faces = find_faces(np.concatenate([small, draw_face(300)], axis=1))
    assert len(faces) == 2
    assert faces[0].box[2] > faces[1].box[2]
    assert faces[0].box[0] > 200.0


def test_a_face_whose_eyes_were_not_found_is_cropped_by_its_box():
    image = draw_face(300)
    (face,) = find_faces(image)
    guessed = Face(face.box)
    assert np.abs(np.array(guessed.points) - np.array(face.points)).max() < 25.0
    assert crop_face(image, guessed).shape == (512, 512, 3)


def test_what_lies_outside_is_even():
    image = draw_face(300)[60:240, 60:240]
    (face,) = find_faces(image)
    crop = crop_face(image, face)
    assert tuple(crop[0, 0]) == BORDER


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((5000, 1, 3), np.uint8),
        np.zeros((1, 5000, 3), np.uint8),
        np.full((64, 64, 3), 200, np.uint8),
        np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8),
    ],
)
def test_no_face_is_no_face(image):
    assert find_faces(image) == []


def test_a_large_face_is_made_small_by_means_not_by_leaving_pixels_out():
    noise = np.random.default_rng(0).integers(0, 256, (2560, 2560, 3), dtype=np.uint8)
    eyes = (np.array(LEFT_EYE) * 5.0, np.array(RIGHT_EYE) * 5.0)
    crop = crop_face(noise, Face((0.0, 0.0, 2560.0, 2560.0), tuple(map(tuple, eyes))))
    assert crop.shape == (512, 512, 3)
    assert crop.std() < 20.0  # of means of 25; single pixels have 74
