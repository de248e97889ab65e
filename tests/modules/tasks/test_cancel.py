"""Stop and Skip."""

import pytest

from modules.spec.errors import Cancelled, Skipped
from modules.tasks.cancel import CancelToken


def test_a_fresh_token_lets_work_go_on():
    CancelToken().check()


def test_skip_ends_one_picture():
    token = CancelToken()
    token.skip()
    with pytest.raises(Skipped):
        token.check()
    token.next_image()
    token.check()


def test_stop_is_stronger_than_skip_and_lasts():
    token = CancelToken()
    token.skip()
    token.stop()
    token.next_image()
    with pytest.raises(Cancelled):
        token.check()
    assert token.is_stopped and not token.is_skipped
