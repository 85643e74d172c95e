"""Checkpoints: which files are read, which entries a state must have, and that reading one runs nothing."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from altgrad.experiment.checkpoints.checkpoint import CheckpointError, check_content, load_checkpoint, save_checkpoint
from altgrad.storage.folder import Folder


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self._place),)


def test_a_checkpoint_with_code_in_it_is_passed_over_and_its_code_never_run(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "checkpoints")
    save_checkpoint(folder, 1, {"step": 1})
    name = save_checkpoint(folder, 2, {"step": 2, "more": Code(tmp_path / "made")})
    assert load_checkpoint(folder) == ({"step": 1}, [name]) and not (tmp_path / "made").exists()


def test_the_newest_that_is_whole_is_read_and_later_ones_that_were_cut_short_are_told(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    assert load_checkpoint(folder) == (None, [])
    names = [save_checkpoint(folder, step, {"step": step}) for step in (9, 10, 100)]
    folder.write_bytes("step-000000007-notes.txt", b"of somebody else")
    assert load_checkpoint(folder) == ({"step": 100}, [])
    (tmp_path / names[2]).write_bytes((tmp_path / names[2]).read_bytes()[:-1])
    assert load_checkpoint(folder) == ({"step": 10}, [names[2]])
    (tmp_path / names[1]).write_bytes(b"")
    assert load_checkpoint(folder) == ({"step": 9}, [names[2], names[1]])
    (tmp_path / names[0]).write_bytes(b"a")
    assert load_checkpoint(folder) == (None, names[::-1])


STATE: dict[str, Any] = {
    "model": {"w": torch.zeros(2, 3), "counts": [0, 0]},
    "acts": [{"step": 0}, {}],
    "optimizer": {},
    "moments": [],
    "detector": {},
    "gap": {"own": {}},
    "name": "a",
}


def test_a_state_of_later_steps_has_the_same_entries() -> None:
    later = copy.deepcopy(STATE)
    later |= {"optimizer": {"state": 1}, "moments": [1, 2], "detector": {"step": 3}, "gap": {"more": 1}, "name": "b"}
    later["model"]["w"] += 1
    later["acts"][0]["step"] = 7
    check_content(later, STATE)


WRONG = {
    "lacks": (lambda s: s.pop("gap"), "checkpoint: lacks gap"),
    "has": (lambda s: s.update(new=1), "checkpoint: has new"),
    "both": (lambda s: s.update(new=s.pop("gap")), "checkpoint: lacks gap and has new"),
    "many": (lambda s: s.clear(), "checkpoint: lacks acts, detector, gap"),
    "deeper": (lambda s: s["model"].update(b=1), "checkpoint.model: has b"),
    "in a list": (lambda s: s["acts"][1].update(b=1), "checkpoint.acts.1: has b"),
    "length": (lambda s: s["acts"].pop(), "checkpoint.acts: expected 2 entries"),
    "no list": (lambda s: s.update(acts=7), "checkpoint.acts: expected 2 entries"),
    "no names": (lambda s: s.update(model=[1]), "checkpoint.model: expected entries by name, found list"),
    "shape": (
        lambda s: s["model"].update(w=torch.zeros(3, 2)), "checkpoint.model.w: expected a tensor of shape (2, 3)"
    ),
    "no tensor": (lambda s: s["model"].update(w=0.0), "checkpoint.model.w: expected a tensor of shape (2, 3)"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_what_a_state_of_another_version_lacks_or_has_is_named_with_its_place(change: Any, said: str) -> None:
    state = copy.deepcopy(STATE)
    change(state)
    with pytest.raises(CheckpointError) as caught:
        check_content(state, STATE)
    assert str(caught.value) == said
