"""The log-writing thread on real pipes."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from structlog.typing import FilteringBoundLogger

from amo_callback.observe.log import make_logger
from amo_callback.observe.log_writer import LogWriter
from tests.wait_limit import WAIT_LIMIT


class Pipe:
    """A pipe with a log at its write end."""

    def __init__(self, **options: Any) -> None:
        self.reading, writing = os.pipe()
        self.stream = open(writing, "w", encoding=options.pop("encoding", "utf-8"))  # noqa: PTH123, SIM115 -- because it stays open
        self.writer = LogWriter(self.stream, **options)
        self.logger: FilteringBoundLogger = make_logger(level="info", style="json", stream=self.writer)

    def read(self, *, until: str) -> list[dict[str, Any]]:
        """Read lines up to and including this event."""
        lines: list[dict[str, Any]] = []
        with os.fdopen(os.dup(self.reading), "rb", buffering=0) as reader:
            while not lines or lines[-1]["event"] != until:
                lines.append(json.loads(reader.readline()))
        return lines


@contextmanager
def _pipe(**options: Any) -> Iterator[Pipe]:
    pipe = Pipe(**options)
    try:
        yield pipe
    finally:
        os.close(pipe.reading)
        pipe.writer.finish(seconds=WAIT_LIMIT)
        pipe.stream.close()


def test_log_writer_keeps_lines_whole_and_in_order() -> None:
    """Long lines are complete too, and every line is written once `finish` has returned."""
    with _pipe() as pipe:
        for number in range(100):
            pipe.logger.info("e", number=number, text="x" * (10_000 if number == 50 else 100))
        pipe.logger.info("last")
        pipe.writer.finish(seconds=WAIT_LIMIT)
        assert [line.get("number") for line in pipe.read(until="last")] == [*range(100), None]
        assert pipe.writer.lost == 0


def test_log_writer_without_reader_counts_lost_lines_without_waiting() -> None:
    """Once the pipe is read again, a line reports the number of lost lines: each is either read or counted."""
    with _pipe(limit=10_000) as pipe, ThreadPoolExecutor(1) as executor:
        for number in range(5000):  # the pipe takes the first 64 KiB
            pipe.logger.info("e", number=number)
        assert pipe.writer.lost > 0
        pipe.writer.finish(seconds=0)  # does not wait for a reader
        reading = executor.submit(pipe.read, until="last")
        pipe.writer.finish(seconds=WAIT_LIMIT)
        pipe.logger.info("last")
        lines = reading.result(WAIT_LIMIT)
        numbers = [line["number"] for line in lines if line["event"] == "e"]
        losses = [line for line in lines if line["event"] == "log.lines_lost"]
        assert numbers == sorted(numbers)
        assert sum(line["lines"] for line in losses) == pipe.writer.lost == 5000 - len(numbers)
        assert losses[0]["level"] == "warning"


def test_log_writer_unencodable_text_is_escaped() -> None:
    """The line is still JSON, even if a character needs two escapes."""
    with _pipe(encoding="ascii") as pipe:
        pipe.logger.info("last", text="café 🙂")
        assert pipe.read(until="last")[0]["text"] == "café 🙂"


def test_log_writer_on_non_blocking_pipe_loses_no_line() -> None:
    """The thread waits until the pipe accepts more."""
    with _pipe() as pipe, ThreadPoolExecutor(1) as executor:
        os.set_blocking(pipe.stream.fileno(), False)
        for number in range(2000):
            pipe.logger.info("e", number=number)
        pipe.logger.info("last")
        lines = executor.submit(pipe.read, until="last").result(WAIT_LIMIT)
        assert [line.get("number") for line in lines] == [*range(2000), None]


def test_log_writer_on_full_disk_counts_lost_lines() -> None:
    """A line that the disk has no space for is lost."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        writer = LogWriter(full)
        make_logger(level="info", style="json", stream=writer).info("e")
        writer.finish(seconds=WAIT_LIMIT)
        assert writer.lost == 1
