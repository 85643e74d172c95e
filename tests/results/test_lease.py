"""One process at a time works in a folder; the second is told who; a dead one is succeeded."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from altgrad.results import Lease, LeaseHeld, lease, read_lease
from altgrad.storage.folder import Folder
from tests.servers.lease_holders import elsewhere, holder
from tests.servers.polling import PATIENCE, wait_for


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole seconds, and no time goes by for leases."""
    now, clock = float(int(time.time())), SimpleNamespace(**vars(time))
    clock.time = lambda: now
    monkeypatch.setattr(lease, "time", clock)
    monkeypatch.setattr(lease, "_storage_time", lambda folder, other: now)


def test_the_second_is_told_who_holds_the_folder_since_when_and_until_when(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with pytest.raises(LeaseHeld) as caught:
            Lease.take(Folder.at(tmp_path))
        said = str(caught.value)
        assert said.count("\n") == 0 and f"process {process.pid} on " in said
        assert time.strftime("since %Y-%m-%d") in said and "runs out in" in said and str(tmp_path) in said
    finally:
        process.kill()
        process.wait()


def test_a_folder_made_for_a_lease_alone_goes_with_it_and_one_that_was_there_or_holds_something_stays(
    tmp_path: Path,
) -> None:
    (tmp_path / "there").mkdir()
    for name in ("there", "new", "new/a/b", "there/c"):
        Lease.take(Folder.at(tmp_path / name)).release()
        assert [path.name for path in tmp_path.rglob("*")] == ["there"], name
    kept = Lease.take(Folder.at(tmp_path / "new/a/b"))
    (tmp_path / "new/a/results").touch()
    kept.release()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "new", "results", "there"]


def test_a_newcomer_that_waited_for_a_folder_that_was_removed_meanwhile_makes_it_anew(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "run")
    first = Lease.take(folder)
    with lease._locked(folder):
        taken: list[Lease] = []
        newcomer = threading.Thread(target=lambda: taken.append(Lease.take(folder)))
        newcomer.start()
        time.sleep(0.3)
        shutil.rmtree(folder.path)
    newcomer.join()
    first.release()
    assert taken and lease._owner(folder) == taken[0].owner
    taken[0].release()


def test_a_killed_owner_on_this_machine_is_succeeded_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path)
    process.kill()
    process.wait()
    Lease.take(Folder.at(tmp_path)).release()  # which does not wait, or it would be refused
    assert read_lease(Folder.at(tmp_path)) is None


def test_a_stopped_owner_on_this_machine_still_holds_its_folder(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        process.send_signal(signal.SIGSTOP)
        found = json.loads((tmp_path / "lease.json").read_text()) | {"renewed": time.time() - 3600}
        Folder.at(tmp_path).write_json("lease.json", found)
        with pytest.raises(LeaseHeld):
            Lease.take(Folder.at(tmp_path))
    finally:
        process.kill()
        process.wait()


def test_a_later_process_of_the_same_number_is_not_the_owner(tmp_path: Path) -> None:
    mine = Lease(Folder.at(tmp_path), None)
    old = mine._fields | {"renewed": time.time(), "process": f"{lease._system()} 1"}
    Folder.at(tmp_path).write_json("lease.json", old)
    Lease.take(Folder.at(tmp_path)).release()


@pytest.mark.parametrize(
    ("age", "life"), [(0, "running"), (29, "running"), (30, "silent"), (59, "silent"), (60, "dead")]
)
def test_an_owner_elsewhere_is_judged_by_its_own_pace(age: float, life: str, tmp_path: Path, frozen: None) -> None:
    folder = Folder.at(tmp_path)
    elsewhere(folder, age)
    found = read_lease(folder)
    assert found is not None and lease.life_of(folder, found) == life
    elsewhere(folder, 10 * age, pace=100.0)
    found = read_lease(folder)
    assert found is not None and lease.life_of(folder, found) == life
    elsewhere(folder, age)
    if life == "dead":
        Lease.take(folder).release()
    else:
        with pytest.raises(LeaseHeld, match="process 1 on other works in it"):
            Lease.take(folder)


def test_an_owner_elsewhere_whose_clock_is_wrong_is_judged_by_the_storage(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    for wrong in (-7200.0, 7200.0):
        elsewhere(folder)
        stamp = os.stat(tmp_path / "lease.json")
        told = json.loads((tmp_path / "lease.json").read_text())
        folder.write_json("lease.json", told | {"renewed": time.time() + wrong})
        os.utime(tmp_path / "lease.json", (stamp.st_mtime, stamp.st_mtime))
        with pytest.raises(LeaseHeld):
            Lease.take(folder)


def test_of_many_that_come_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    elsewhere(Folder.at(tmp_path), age=100)
    taken: list[Lease] = []
    refused: list[str] = []

    def come() -> None:
        try:
            taken.append(Lease.take(Folder.at(tmp_path)))
        except LeaseHeld as error:
            refused.append(str(error))

    threads = [threading.Thread(target=come) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (1, 11)
    taken[0].release()


@pytest.mark.parametrize("content", [b"", b"null", b"{", b'{"owner": 1}', b"\0" * 100])
def test_a_damaged_lease_holds_nobody_off(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "lease.json").write_bytes(content)
    Lease.take(Folder.at(tmp_path)).release()


def test_an_owner_that_was_succeeded_notices_and_storage_that_refuses_is_no_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PACE", 0.05)
    held, refusing, refused = Lease.take(Folder.at(tmp_path)), True, 0
    read = Folder.read_json

    def refuse(folder: Folder, name: str) -> dict[str, Any]:
        nonlocal refused
        if refusing:
            refused += 1
            raise OSError("503")
        return read(folder, name)

    def renewed() -> float:
        found = read_lease(Folder.at(tmp_path))
        assert found is not None
        return float(found["renewed"])

    monkeypatch.setattr(Folder, "read_json", refuse)
    wait_for(lambda: refused > 3)
    held.check()
    refusing = False
    before = renewed()
    wait_for(lambda: renewed() > before)
    elsewhere(Folder.at(tmp_path))
    held._thread.join(PATIENCE)
    with pytest.raises(LeaseHeld, match="on other"):
        held.check()
    held.release()
    left = read_lease(Folder.at(tmp_path))
    assert left is not None and left["host"] == "other", "the successor's lease stays"


def test_those_of_one_sweep_succeed_each_other_at_once_others_wait(tmp_path: Path) -> None:
    elsewhere(Folder.at(tmp_path), group="sweep-1")
    with pytest.raises(LeaseHeld):
        Lease.take(Folder.at(tmp_path), "sweep-2")
    Lease.take(Folder.at(tmp_path), "sweep-1").release()
