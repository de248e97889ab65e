import math

import pytest

from modules.spec import limits
from modules.spec.sizes import SDXL, Size, SizeTable, parse_ratio, size_of_area
from modules.spec.task_spec import TaskSpec


def test_sdxl_has_26_sizes_of_about_one_megapixel():
    assert len(set(SDXL.sizes)) == 26
    assert all(0.85 < w * h / 1024**2 < 1.1 and w % 64 == h % 64 == 0 for w, h in SDXL.sizes)


def test_no_ratio_gives_the_default():
    assert SDXL.choose("") == (1152, 896)


@pytest.mark.parametrize("size", SDXL.sizes, ids=str)
def test_each_table_size_is_chosen_by_its_own_ratio_and_is_a_valid_request(size):
    assert SDXL.choose(size.ratio) == size
    assert SDXL.choose(TaskSpec(aspect_ratio=f"{size.width}×{size.height}").aspect_ratio) == size


@pytest.mark.parametrize(("ratio", "expected"), [("3:2", (1248, 832)), ("1:1", (1024, 1024))])
def test_other_ratios_keep_the_area(ratio, expected):
    assert SDXL.choose(ratio) == expected


@pytest.mark.parametrize("ratio", [0.25, 0.31, 1.0, 1.7777, 4.0])
@pytest.mark.parametrize("area", [64 * 64, 256 * 256, 1024 * 1024, 4 * 1024 * 1024])
def test_sizes_stay_within_the_limits(ratio, area):
    width, height = size_of_area(ratio, area)
    assert min(width, height) >= limits.SIDE_MIN
    assert max(width, height) <= limits.SIDE_MAX
    assert width % 8 == height % 8 == 0
    assert width * height <= limits.PIXELS_MAX


def test_a_small_model_has_its_own_sizes():
    table = SizeTable.from_area(256 * 256, ["1:1", "3:2", "2:3"])
    assert table.default == Size(256, 256)
    assert table.sizes[1] == (312, 208)
    assert math.isclose(312 / 208, 1.5)
    assert table.choose("16:9") == (344, 192)


@pytest.mark.parametrize("text", ["", "3", "3:", ":2", "0:1", "a:b", "3:2:1", "-3:2", "²:1"])
def test_nonsense_is_no_ratio(text):
    with pytest.raises(ValueError, match="width:height"):
        parse_ratio(text)


def test_listed_ratios_come_as_the_sizes_that_were_trained():
    ratios = ("1:1", "9:7", "7:9", "5:3", "3:5", "11:6", "6:11")
    sizes = SizeTable.from_area(65_536, ratios).sizes
    assert sizes == (
        (256, 256), (288, 224), (224, 288), (320, 192), (192, 320), (352, 192), (192, 352),
    )  # fmt: skip
