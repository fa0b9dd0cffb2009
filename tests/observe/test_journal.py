"""Whether lines go to systemd's journal."""

import io
import os
from pathlib import Path

from amo_callback.observe.systemd import is_journal


def test_the_variable_must_name_the_very_stream(tmp_path: Path) -> None:
    """A process of the same unit whose output was sent elsewhere has the variable, too."""
    with (tmp_path / "here").open("w") as here, (tmp_path / "elsewhere").open("w") as elsewhere:
        status = os.fstat(here.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert is_journal(here, environ)
        assert not is_journal(elsewhere, environ)
        assert not is_journal(here, {})
        assert not is_journal(here, {"JOURNAL_STREAM": "nonsense"})


def test_what_is_no_open_file_is_no_journal(tmp_path: Path) -> None:
    """A stream in memory, or one that was closed."""
    assert not is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:2"})
    with (tmp_path / "closed").open("w") as closed:
        pass
    assert not is_journal(closed, {"JOURNAL_STREAM": "1:2"})
