"""What an error shows of a value: enough to find it, never more than a line."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from altgrad.text.error_hints import LONGEST, error_text, shown_path


@pytest.mark.parametrize("depth", [0, 3, 9, 40])
def test_a_path_of_any_length_keeps_its_beginning_and_its_files_name(depth: int) -> None:
    path = "/scratch/" + "a_folder_of_a_user/" * depth + "the_config_of_this_run.yaml"
    line = shown_path(PurePosixPath(path))
    assert len(line) <= LONGEST and line.startswith("/scratch/") and line.endswith("/the_config_of_this_run.yaml")
    assert ("…" in line) == (len(path) > LONGEST)


def test_a_path_is_one_line_without_credentials() -> None:
    assert shown_path("s3://KEY:SECRET@bucket/a\nb") == "s3://***@bucket/a b"


def test_an_error_of_the_system_names_the_file_before_the_reason_and_no_number(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        (tmp_path / "absent.csv").read_bytes()
    assert error_text(caught.value) == f"{shown_path(tmp_path / 'absent.csv')}: No such file or directory"
    assert error_text(FileNotFoundError("no run.json in it")) == "no run.json in it"
