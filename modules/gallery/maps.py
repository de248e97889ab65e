"""What of a picture counts for an image prompt, made the same way for the painting and for a look.

The edges or the structure that a control follows, or the face that is cropped. The worker and the
page share this, so that what is shown before is what steers.
"""

import numpy as np
from PIL import Image

from modules.spec import limits
from modules.spec.errors import SpecError
from modules.spec.image_prompt import ImagePrompt, ImagePromptType

FIELD = "image_prompts"


def fitted(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """The middle of uint8 (H, W, 3), scaled to fill (height, width, 3)."""
    high, wide = pixels.shape[:2]
    if (high, wide) == (height, width):
        return pixels
    scale = max(height / high, width / wide)
    shown = [max(1, round(side / scale)) for side in (height, width)]
    top, left = (max((a - b) // 2, 0) for a, b in zip((high, wide), shown, strict=True))
    middle = pixels[top : top + shown[0], left : left + shown[1]]
    return np.asarray(Image.fromarray(middle).resize((width, height), Image.Resampling.BILINEAR))


def structure_map(pixels: np.ndarray, prompt: ImagePrompt, width: int, height: int) -> np.ndarray:
    """The map that a control follows, uint8 (height, width, 3).

    Edges and structure are looked for in the picture at that size. Depth and lines are taken as
    they are.
    """
    sized = fitted(pixels, width, height)
    if prompt.skip_preprocess or prompt.type not in (ImagePromptType.CANNY, ImagePromptType.CPDS):
        return sized
    from extras.preprocessors import canny_pyramid, cpds  # not at the server's start: cv2 is large

    if prompt.type is ImagePromptType.CANNY:
        found = canny_pyramid(sized, prompt.canny_low, prompt.canny_high)
    else:
        found = cpds(sized)
    return np.repeat(found[..., None], 3, axis=2)


def face_of(pixels: np.ndarray, prompt: ImagePrompt) -> np.ndarray:
    """The face that `prompt` asks for, upright, or the picture if that is to be taken as it is.

    Raises SpecError if there is no such face.
    """
    if prompt.skip_preprocess:
        return pixels
    from extras.face_crop import crop_face, find_faces

    faces = find_faces(pixels)
    if not faces:
        raise SpecError(
            "No face was found in the picture of an image prompt; choose one that shows a face "
            "from the front, or take the picture as it is.",
            FIELD,
        )
    if prompt.face > len(faces):
        found = "one face" if len(faces) == 1 else f"{len(faces)} faces"
        raise SpecError(
            f"The picture of an image prompt shows {found}, but face {prompt.face} is asked for; "
            "choose a smaller number.",
            FIELD,
        )
    return crop_face(pixels, faces[prompt.face - 1])


def map_of(
    pixels: np.ndarray, prompt: ImagePrompt, size: tuple[int, int] | None = None
) -> np.ndarray:
    """What of `pixels` counts, uint8 (H, W, 3); of a structure at `size`, (width, height).

    Without a size it is the picture's own, within what can be painted. Raises SpecError.
    """
    if prompt.type is ImagePromptType.FACE:
        return face_of(pixels, prompt)
    if not prompt.type.is_structure:
        return pixels
    high, wide = pixels.shape[:2]
    scale = min(1.0, (limits.PIXELS_MAX / (high * wide)) ** 0.5, limits.SIDE_MAX / max(high, wide))
    width, height = size or (max(1, round(wide * scale)), max(1, round(high * scale)))
    return structure_map(pixels, prompt, width, height)
