import threading

import pytest

from modules.worker.saver import Saver


@pytest.fixture
def saver():
    saver = Saver()
    yield saver
    saver.close()


def test_order_is_kept(saver):
    done = []
    for number in range(20):
        saver.submit(lambda number=number: done.append(number))
    saver.wait()
    assert done == list(range(20))


def fail():
    raise ValueError("no room")


def test_an_error_comes_out_and_is_then_forgotten(saver):
    saver.submit(fail)
    with pytest.raises(ValueError, match="no room"):
        saver.wait()
    saver.raise_if_failed()
    saver.wait()


def test_a_failure_is_known_without_waiting(saver):
    gate, reached = threading.Event(), threading.Event()
    saver.submit(lambda: gate.wait(10))
    saver.raise_if_failed()  # still pending: no error, and no waiting
    gate.set()
    saver.submit(fail)
    saver._threads.submit(reached.set)  # the queue is in order: fail() is over by then
    assert reached.wait(10)
    with pytest.raises(ValueError, match="no room"):
        saver.raise_if_failed()


def test_writes_after_a_failing_one_are_waited_for(saver):
    done = []
    gate = threading.Event()
    saver.submit(lambda: gate.wait(10) and fail())
    saver.submit(lambda: done.append(1))
    gate.set()
    with pytest.raises(ValueError, match="no room"):
        saver.wait()
    assert done == [1]
