"""How a stage ends that cannot go on: .venv/bin/python -m pytest tests/test_errors.py

What libraries really say on a full disk is tested in test_disk_full.py.
"""

import pytest

from framefold.errors import UserError, command


def hide_full_disk() -> None:
    try:
        raise OSError(28, "No space left on device", "weights.pt")
    except OSError as error:
        raise RuntimeError("unexpected pos 704 vs 598") from error


def end_of(error: Exception) -> int | str | None:
    @command
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device", "metrics/a.json"),
        OSError(122, "Disk quota exceeded", "metrics/a.json"),
        ValueError("I/O error: No space left on device (os error 28)"),
        OSError("4096 requested and 100 written"),
    ],
)
def test_a_full_disk_ends_in_one_line(error: Exception, capsys: pytest.CaptureFixture[str]):
    assert end_of(error) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith("No space left on device; free the disk and run again, what is finished is kept")
    if getattr(error, "filename", None):
        assert "metrics/a.json" in line


def test_a_full_disk_behind_another_error_is_seen(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        command(hide_full_disk)()
    assert "No space left on device" in capsys.readouterr().err


def test_a_user_error_keeps_its_own_words(capsys: pytest.CaptureFixture[str]):
    assert end_of(UserError("folds: none; name some")) == 1
    assert capsys.readouterr().err == "error: folds: none; name some\n"


def test_a_defect_shows_where_it_is():
    @command
    def main() -> None:
        raise KeyError("fold")

    with pytest.raises(KeyError):
        main()
