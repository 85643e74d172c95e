"""Pairs each run with its BF16 baseline and computes the gap between the two (see `gap`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from altgrad.compare.gap import gap_at, last_common_step, loss_at
from altgrad.compare.origin import NOT_RECORDED
from altgrad.compare.pairing import NUMERICS, SITE_FORMATS
from altgrad.compare.parity.confounds import confounds
from altgrad.compare.row import Row, Unpaired

# Config fields of which another value may mean that other layers and products are rounded.
_EXPLAINING = NUMERICS - {"format", *SITE_FORMATS}


@dataclass(frozen=True)
class _Match:
    """A run, its baseline (None if no run may be compared with it), and a remark on the pairing, maybe empty."""

    member: Unpaired
    baseline: Unpaired | None
    said: str

    @property
    def is_alive(self) -> bool:
        """Whether the run and its baseline are both alive, so that their gap is averaged and ranked."""
        return self.baseline is not None and self.member.row.alive and self.baseline.row.alive


def paired(members: Sequence[Unpaired]) -> list[Row]:
    """One row per run, with its baseline and gap, or with a sentence why it has none."""
    candidates = _candidates(members)
    matches = [_match(member, candidates.get(member.settings.pair, [])) for member in members]
    steps = _common_steps(matches)
    return [_row(match, steps.get(match.member.row.task)) for match in matches]


def _candidates(members: Iterable[Unpaired]) -> dict[str, list[Unpaired]]:
    """`Settings.pair` -> its baselines in order of name; several only if their weights or data differ."""
    found: dict[str, list[Unpaired]] = {}
    for member in sorted(members, key=lambda member: member.row.run):
        if member.settings.is_baseline:
            known = found.setdefault(member.settings.pair, [])
            if all(member.origin.obstacle(other.origin) for other in known):
                known.append(member)
    return found


def _match(member: Unpaired, candidates: Sequence[Unpaired]) -> _Match:
    if not candidates:
        return _Match(member, None, "")
    obstacles = [_obstacle(member, candidate) for candidate in candidates]
    if None not in obstacles:
        return _Match(member, None, obstacles[0] or "")
    baseline = candidates[obstacles.index(None)]
    vouched = baseline is member or member.origin.vouches_for(baseline.origin)
    return _Match(member, baseline, "" if vouched else NOT_RECORDED)


def _obstacle(member: Unpaired, baseline: Unpaired) -> str | None:
    """Why the two cannot be compared; None if they can.

    If another share of the model is rounded although both configs differ in formats alone, the models or the versions
    of altgrad round different layers.
    """
    coverage = member.origin.other_coverage(baseline.origin)
    one, other = member.settings.config, baseline.settings.config
    explained = any(one.get(name) != other.get(name) for name in _EXPLAINING)
    unexplained = None if coverage is None or explained else f"not compared: {coverage}"
    return member.origin.obstacle(baseline.origin) or unexplained


def _common_steps(matches: Iterable[_Match]) -> dict[str, int | None]:
    """`Row.task` -> the last step that all runs alive and their baselines have measured.

    Of a task without such a pair, the last that all its runs alive have measured: any two groups may be compared.
    """
    losses: dict[str, list[Unpaired]] = {}
    alone: dict[str, list[Unpaired]] = {}
    for match in matches:
        member, baseline, task = match.member, match.baseline, match.member.row.task
        if member.row.alive and len(member.loss.steps):  # a run without a measurement is left out
            alone.setdefault(task, []).append(member)
        if baseline is None or baseline is member or not match.is_alive:
            continue
        if len(member.loss.steps) and len(baseline.loss.steps):
            losses.setdefault(task, []).extend((member, baseline))
    return {task: last_common_step(one.loss for one in compared) for task, compared in (alone | losses).items()}


def _row(match: _Match, common: int | None) -> Row:
    member, baseline = match.member, match.baseline
    row = replace(member.row, settings=member.settings, origin=member.origin, pairing=match.said)
    row = replace(row, common_step=common, step_loss=loss_at(common, member.loss))
    if baseline is None:
        return row
    if baseline is member:
        return replace(row, is_baseline=True, baseline=row.run)
    differ = confounds(member.settings, member.origin, baseline.settings, baseline.origin)
    row = replace(row, baseline=baseline.row.run, baseline_died=baseline.row.collapsed, confounds=differ)
    step = common if match.is_alive else None
    if step not in member.loss.steps or step not in baseline.loss.steps:
        step = last_common_step([member.loss, baseline.loss])
    if step is None:
        return row
    return replace(row, gap=gap_at(step, member.loss, baseline.loss), gap_step=step)
