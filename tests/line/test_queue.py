"""The queue: bounded, in order, one record a part, and no part spoils another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import pytest

from flawsmith.line.queue import InspectionQueue, NotRecordedError, QueueClosedError, QueueFullError, UnreadableYetError
from flawsmith.line.record import Record, Trigger
from flawsmith.line.store import UnwritableError
from flawsmith.runtime.errors import FlawsmithError

SECONDS = 10


class StandIn:
    """Judge and inspector at once: decoding an image waits for its gate, or raises what stands in it."""

    def __init__(self) -> None:
        self.gates: dict[bytes, threading.Event] = {}
        self.errors: dict[bytes, Exception] = {}
        self.begun: list[bytes] = []
        self.started = threading.Condition()

    @property
    def inspector(self) -> Any:
        return self

    def prepare(self, image: bytes) -> bytes:
        with self.started:
            self.begun.append(image)
            self.started.notify_all()
        if image in self.gates:
            assert self.gates[image].wait(SECONDS)
        if image in self.errors:
            raise self.errors[image]
        return image

    def statistics(self, prepared: bytes) -> None:
        return None

    def inspect_prepared(self, prepared: bytes) -> bytes:
        return prepared

    def record(self, trigger: Trigger, inspection: Any, wait: float) -> Record:
        return Record.of_error(trigger, "model", "stand-in").model_copy(update={"verdict": "pass"})

    def error_record(self, trigger: Trigger, error: Exception, *, decoded: bool) -> Record:
        return Record.of_error(trigger, "model" if decoded else "image", str(error))

    def wait_for(self, number: int) -> list[bytes]:
        """Images whose decoding has begun, once there are so many."""
        with self.started:
            assert self.started.wait_for(lambda: len(self.begun) >= number, SECONDS)
            return list(self.begun)


def numbered(judged: Sequence[tuple[Trigger, Record]]) -> list[Record]:
    return [record for _, record in judged]


@pytest.fixture
def judge() -> StandIn:
    return StandIn()


@pytest.fixture
def new_queue() -> Iterator[Callable[..., InspectionQueue]]:
    queues: list[InspectionQueue] = []

    def make(commit: Any = numbered, **settings: Any) -> InspectionQueue:
        queues.append(InspectionQueue(commit, **settings))
        return queues[-1]

    yield make
    for queue in queues:
        queue.close()


def trigger(name: str, **facts: Any) -> Trigger:
    return Trigger("bolt", name.encode(), part_id=name, **facts)


def test_parts_are_answered_in_order_whoever_is_decoded_first(judge: StandIn, new_queue: Any) -> None:
    judge.gates[b"a"] = threading.Event()
    queue, answered = new_queue(decoders=2), []
    futures = [queue.submit(trigger(name), judge) for name in "abc"]
    for future in futures:
        future.add_done_callback(lambda done: answered.append(done.result().part_id))

    judge.wait_for(3)  # b is decoded, and c begun, while a waits
    assert not any(future.done() for future in futures)
    judge.gates[b"a"].set()
    futures[2].result(SECONDS)
    queue.close()

    assert answered == ["a", "b", "c"]


def test_full_queue_refuses_at_once_and_takes_parts_again(judge: StandIn, new_queue: Any) -> None:
    judge.gates[b"a"] = threading.Event()
    queue = new_queue(capacity=2, decoders=1)
    futures = [queue.submit(trigger(name), judge) for name in "ab"]

    with pytest.raises(QueueFullError):
        queue.submit(trigger("c"), judge)
    assert len(queue) == 2
    judge.gates[b"a"].set()

    assert [future.result(SECONDS).part_id for future in futures] == ["a", "b"]
    assert queue.submit(trigger("c"), judge).result(SECONDS).part_id == "c"


def test_no_more_images_are_decoded_ahead_than_memory_is_meant_for(judge: StandIn, new_queue: Any) -> None:
    judge.gates[b"a"] = threading.Event()
    queue = new_queue(capacity=100, decoders=2)
    futures = [queue.submit(trigger(name), judge) for name in "abcdefghij"]

    begun = judge.wait_for(4)
    assert sorted(begun) == [b"a", b"b", b"c", b"d"]
    judge.gates[b"a"].set()

    assert [future.result(SECONDS).part_id for future in futures] == list("abcdefghij")


def test_part_that_cannot_be_judged_has_an_error_record_and_spoils_no_other(judge: StandIn, new_queue: Any) -> None:
    judge.errors = {b"a": FlawsmithError("no image"), b"c": RuntimeError("a defect")}
    queue = new_queue()

    records = [queue.submit(trigger(name), judge).result(SECONDS) for name in "abc"]

    assert [record.verdict for record in records] == ["error", "pass", "error"]
    assert records[0].error == "no image"


def test_provisional_image_that_cannot_be_read_has_no_record(judge: StandIn, new_queue: Any) -> None:
    judge.errors = {b"a": FlawsmithError("half an image")}
    committed: list[str | None] = []

    def commit(judged: Sequence[tuple[Trigger, Record]]) -> list[Record]:
        committed.extend(record.part_id for _, record in judged)
        return numbered(judged)

    queue = new_queue(commit)
    futures = [queue.submit(trigger(name, provisional=True), judge) for name in "ab"]

    with pytest.raises(UnreadableYetError):
        futures[0].result(SECONDS)
    assert futures[1].result(SECONDS).part_id == "b"
    assert committed == ["b"]


def test_record_that_cannot_be_written_is_not_acknowledged_and_the_others_are(judge: StandIn, new_queue: Any) -> None:
    judge.gates[b"a"] = threading.Event()
    written: list[str | None] = []

    def commit(judged: Sequence[tuple[Trigger, Record]]) -> list[Record]:
        if any(record.part_id == "b" for _, record in judged):
            raise OSError("disk full")
        written.extend(record.part_id for _, record in judged)
        return numbered(judged)

    queue = new_queue(commit)
    futures = [queue.submit(trigger(name), judge) for name in "abc"]
    judge.gates[b"a"].set()

    with pytest.raises(NotRecordedError, match="disk full"):
        futures[1].result(SECONDS)
    assert [futures[place].result(SECONDS).part_id for place in (0, 2)] == ["a", "c"] == written
    assert len(queue) == 0


def test_closing_judges_what_was_taken(judge: StandIn, new_queue: Any) -> None:
    queue = new_queue(capacity=50)
    futures = [queue.submit(trigger(str(number)), judge) for number in range(50)]

    queue.close()

    assert all(future.done() for future in futures)
    with pytest.raises(QueueClosedError):
        queue.submit(trigger("late"), judge)


def test_whoever_waits_may_leave_and_the_part_is_judged_all_the_same(judge: StandIn, new_queue: Any) -> None:
    judge.gates[b"a"] = threading.Event()
    queue = new_queue()
    left, stayed = (queue.submit(trigger(name), judge) for name in "ab")

    assert not left.cancel()
    judge.gates[b"a"].set()

    assert [future.result(SECONDS).part_id for future in (left, stayed)] == ["a", "b"]


def test_file_that_another_program_holds_is_waited_for_once_however_many_parts_wait(
    judge: StandIn, new_queue: Any
) -> None:
    batches: list[int] = []
    begun, held = threading.Event(), threading.Event()

    def commit(judged: Sequence[tuple[Trigger, Record]]) -> list[Record]:
        batches.append(len(judged))
        begun.set()
        assert held.wait(SECONDS)
        raise UnwritableError("the file is held")

    queue = new_queue(commit)
    futures = [queue.submit(trigger("a"), judge)]
    assert begun.wait(SECONDS)
    futures += [queue.submit(trigger(name), judge) for name in "bcd"]
    with queue._changed:
        assert queue._changed.wait_for(lambda: len(queue._judged) == 3, SECONDS)
    held.set()

    for future in futures:
        with pytest.raises(NotRecordedError, match="is held"):
            future.result(SECONDS)
    assert batches == [1, 3]


def test_image_is_hashed_where_it_is_decoded_not_where_the_network_waits(judge: StandIn, new_queue: Any) -> None:
    threads: list[str] = []

    class Told(Trigger):
        @cached_property
        def image_sha256(self) -> str:
            threads.append(threading.current_thread().name)
            return "ab" * 32

    new_queue(name="bolt").submit(Told("bolt", b"a"), judge).result(SECONDS)

    assert len(threads) == 1
    assert threads[0].startswith("bolt-decode")
