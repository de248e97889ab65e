"""FreeU's four numbers in a request."""

import json

import pytest

from modules.spec.errors import SpecError
from modules.spec.task_spec import TaskSpec
from modules.worker import generate_cli


def test_four_numbers_or_none():
    assert TaskSpec().freeu == ()
    numbers = [1.01, 1.02, 0.99, 0.95]
    spec = TaskSpec.from_json(json.dumps({"freeu": numbers}))
    assert spec.freeu == tuple(numbers)
    assert TaskSpec.from_mapping(json.loads(spec.to_json())) == spec


def test_the_command_line_takes_them_in_words():
    spec, _, _ = generate_cli.read_request(["x", "--freeu", "1.01, 1.02, .99, .95"])
    assert spec.freeu == (1.01, 1.02, 0.99, 0.95)


@pytest.mark.parametrize(
    "numbers", [[1.0], [1.0] * 5, [2.1, 1, 1, 1], [1, 1, 4.1, 1], [1, 1, 1, -1], "1,x", "1"]
)
def test_others_are_refused_in_a_sentence(numbers):
    with pytest.raises(SpecError, match="FreeU takes b1 and b2 from 0 to 2") as caught:
        TaskSpec.from_mapping({"freeu": numbers})
    assert caught.value.field == "freeu"
