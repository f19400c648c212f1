"""Opening a recorded file: its small rows, and which stretches of it are the steps.

A run that llmprof drove has its steps. For any other file they are its ranges, where some explain
the work, or else what repeats in the device's own work. What was taken, on what it rests, and what
was left out goes into the run's data, so that every reader can say it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmprof.analysis.steps.candidates import Candidate, best, judged
from llmprof.analysis.steps.detect import detect
from llmprof.analysis.steps.events import events_of
from llmprof.analysis.steps.found import described, stretches
from llmprof.analysis.steps.marked import Marked, mark, matching
from llmprof.analysis.steps.stretch import Stretch, joined, pause_words, round_of, unrecorded, until
from llmprof.analysis.timing.conditions import gpu_index, gpu_indices
from llmprof.analysis.view.traced_round import between, without_pauses
from llmprof.errors import UsageError
from llmprof.plaintext import one_line
from llmprof.records import (
    EngineInfo,
    Missing,
    RoundRecord,
    RunData,
    Warned,
)
from llmprof.records.steps import (
    AUTO_STEPS,
    WINDOW_CLOSED,
    StepChoice,
    StepsFound,
)
from llmprof.runfile.foreign.tables import add_engine, add_whole_round
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.trace.ranges import RangeRows

Offered = tuple[Candidate, ...]
"""Ranges that were not taken, the best first."""
HOSTS = 16
"""Processes shown at most of a file without any work on a device and without steps."""
NOTHING_RAN = "nothing ran on a device in this file"
DETECTED = 2_000_000
"""Kernels of a process that steps are looked for in, from its first on."""


def open_run(path: Path, choice: StepChoice = AUTO_STEPS) -> RunData:
    """The small rows of a file, with its steps.

    Raises:
        RunFileError: it cannot be read.
        UsageError: the pattern matches no range, or the run knows its steps itself.
    """
    with RunFileReader(path) as reader:
        data = reader.run_data()
        if not has_steps_to_find(data):
            if choice != AUTO_STEPS:
                option = "--step-range" if choice.pattern else "--steps"
                raise UsageError(
                    f"{option} is for files that llmprof did not drive:"
                    " a run of llmprof has its steps"
                )
            return data
        opened = _Opened(reader, data, choice).data
        if not opened.engines and opened.info.source == "opened":
            named = reader.processes()[:HOSTS]  # the host alone, without a step
            for process, label in reader.process_labels(named).items():
                engine = add_engine(opened, process, label, EngineInfo.not_driven("cpu"))
                opened.steps_found[engine.engine_id] = StepsFound("none", NOTHING_RAN)
        _add_sampled_rounds(opened, reader.sampled_devices())
        return opened


def has_steps_to_find(data: RunData) -> bool:
    """Was the program driven by somebody else: opened from another profiler, or recorded?"""
    return data.info.source != "driven"


def _add_sampled_rounds(data: RunData, sampled: list[tuple[int, int, int, int]]) -> None:
    """Where a GPU's counters were sampled, the most steps meanwhile without a pause are a sampled
    round too.

    The counters are the GPU's: of one that several processes used, nobody's bandwidth can be told.
    An engine on several GPUs has the rounds of its first; ``pm_round`` names those of the others.
    """
    shared: set[int] = set()  # engines
    for device in sorted({device for _, device, *_ in sampled}):
        users = [e for e in data.engines if device in gpu_indices(e)]
        if len(users) > 1:
            who = ", ".join(e.label for e in users)
            reason = f"GPU {device} was used by {who}: its counters cannot be told apart by process"
            data.missing += [Missing(e.label, "pm", reason) for e in users]
            shared |= {e.engine_id for e in users}
    for round_id, device, begin_ns, end_ns in sampled:
        users = [e for e in data.engines if gpu_index(e) == device and e.engine_id not in shared]
        if not users:
            continue
        traced = data.rounds_of(users[0].engine_id, "traced")
        pieces = [piece for r in traced for piece in without_pauses(r)]
        parts = [part for r in pieces if (part := between(r, begin_ns, end_ns)) is not None]
        if parts:
            longest = max(parts, key=lambda r: r.steps)
            index = len(data.rounds_of(users[0].engine_id, "sampled"))
            data.rounds.append(
                replace(longest, round_id=round_id, pass_name="sampled", index=index)
            )


def step_candidates(path: Path) -> list[Candidate]:
    """Ranges that could be the steps, the best guess first; empty for a run of llmprof."""
    with RunFileReader(path) as reader:
        if not has_steps_to_find(reader.run_data()):
            return []
        return judged(reader.ranges(), reader.launches())


class _Opened:
    """A file that llmprof did not make, with its steps looked up."""

    def __init__(self, reader: RunFileReader, data: RunData, choice: StepChoice) -> None:
        self.data, self._reader = data, reader
        # The untraced second run of a recorded program has steps already.
        self._stamped = [r for r in data.rounds if r.steps_from != "none"]
        self._whole = [r for r in data.rounds if r.steps_from == "none"]
        data.info.environment["step_range"] = None
        if choice.how == "none":
            self._none("steps were not asked for (--steps none)", ())
        elif choice.how == "detect" and not choice.pattern:
            self._detect({})
        else:
            self._by_ranges(choice)

    def _by_ranges(self, choice: StepChoice) -> None:
        ranges = self._reader.ranges()
        if self.data.info.source == "recorded":
            # Not the ranges that llmprof made of the second run's rounds.
            ranges = ranges.of([p.process for p in self.data.processes])
        found = judged(ranges, self._reader.launches())
        candidate = None if choice.pattern else best(found)
        pattern = choice.pattern or (candidate.pattern if candidate else "")
        if choice.pattern and not len(matching(ranges, pattern)):
            there = ", ".join(one_line(c.pattern, 60) for c in found[:5]) or "no NVTX range"
            raise UsageError(f"--step-range {one_line(pattern)}: no such range; there are: {there}")
        offered = tuple(c for c in found if c is not candidate)[:4]
        if not pattern:
            hint = "no range explains the work" if len(ranges) else "the file has no NVTX ranges"
            if choice.how == "ranges":
                self._none(hint, offered)
            else:
                self._detect({"ranges": hint}, offered)
            return
        if candidate is None:
            candidate = next((c for c in found if c.pattern == pattern), None)
        self.data.info.environment["step_range"] = pattern
        self._mark(ranges, mark(ranges, pattern, candidate), pattern, candidate, offered)
        if ranges.cut:
            text = f"only the first {len(ranges):,} ranges were looked at"
            self.data.warnings.append(Warned("run", text))

    def _mark(
        self,
        ranges: RangeRows,
        marked: list[Marked],
        pattern: str,
        candidate: Candidate | None,
        offered: Offered,
    ) -> None:
        data = self.data
        marked = self._owned(marked, pattern)
        stepping = {one.process for one in marked}
        rounds: list[RoundRecord] = []
        for one in marked:
            whole = next(r for r in self._whole if r.pid == one.process)
            label = data.engines[whole.engine_id].label
            groups, left_out = self._worked(whole, one)
            part, unseen = self._recorded(joined(groups))
            made = round_of(part, whole, len(rounds) + 1, 0, one.tid)
            # A host may return from a step long before the device has begun with it.
            last = part[-1]
            end = self._reader.end_of_launched(whole.pid, last.start_ns, last.end_ns)
            rounds.append(replace(until(made, end), other_tids=one.other_tids))
            words = _marked_words(one, pattern, candidate, offered)
            left_out = (*one.left_out, *left_out, *unseen, *pause_words(part))
            data.steps_found[whole.engine_id] = replace(words, left_out=left_out)
            for text in one.left_out:
                self.data.warnings.append(Warned(label, f"left out of the steps: {text}"))
        for whole in self._whole:
            if whole.pid not in stepping:
                rounds.append(replace(whole, round_id=len(rounds) + 1))
                why = f"this process has no range {one_line(pattern, 60)}"
                data.steps_found[whole.engine_id] = StepsFound(
                    "none", why, candidates=_words(offered)
                )
        self._put(rounds)

    def _worked(
        self, whole: RoundRecord, one: Marked
    ) -> tuple[tuple[tuple[Stretch, ...], ...], tuple[str, ...]]:
        """Groups of steps in which a device worked (all, where there are none), and what is said of
        the others: marks may go on where nothing was traced."""
        if len(one.rounds) < 2:
            return one.rounds, ()
        records = [round_of(part, whole, 0, 0, one.tid) for part in one.rounds]
        work = self._reader.work_in(records)
        kept = tuple(part for part, rows in zip(one.rounds, work, strict=True) if rows)
        if not kept or len(kept) == len(one.rounds):
            return one.rounds, ()
        steps = sum(len(part) for part, rows in zip(one.rounds, work, strict=True) if not rows)
        count = len(one.rounds) - len(kept)
        return kept, (
            f"{steps:,} steps in {count:,} group{'s' * (count > 1)} where nothing ran on a device",
        )

    def _recorded(self, part: tuple[Stretch, ...]) -> tuple[tuple[Stretch, ...], tuple[str, ...]]:
        """Without the steps in which the window was closed, and what is said of them."""
        told = self.data.info.environment.get(WINDOW_CLOSED)
        closed = [
            (pair[0], pair[1])
            for pair in (told if isinstance(told, list) else [])
            if isinstance(pair, list) and [*map(type, pair)] == [int, int]
        ]
        part, gone = unrecorded(part, closed)
        text = f"{gone:,} step{'s' * (gone > 1)} while the window was closed"
        return part, (text,) if gone else ()

    def _owned(self, marked: list[Marked], pattern: str) -> list[Marked]:
        """Each with an engine: that of its process, or a new one. An engine may schedule in one
        process and compute in others: where all ranges are in one process without any work, its
        steps are given to those that do the work."""
        data = self.data
        busy = [r.pid for r in self._whole]
        homeless = [one for one in marked if one.process not in busy]
        if not homeless:
            return marked
        wanted = [one.process for one in homeless]
        labels = self._reader.process_labels([*busy, *wanted])
        workers = ", ".join(labels[process] for process in busy)
        if busy and len(marked) == 1:
            (main,) = homeless
            text = (
                f"the ranges {one_line(pattern, 60)} are in {labels[main.process]}, which ran"
                f" nothing on a GPU; they are taken as the steps of {workers}, whose work it is"
            )
            data.warnings.append(Warned("run", text))
            return [replace(main, process=process) for process in busy]
        if data.info.source == "recorded":  # it says itself which processes are engines
            return [one for one in marked if one.process in busy]
        for one in homeless:  # only the host's part of it is in the file
            engine = add_engine(
                data, one.process, labels[one.process], EngineInfo.not_driven("cpu")
            )
            first, last = one.rounds[0][0].start_ns, one.rounds[-1][-1].end_ns
            add_whole_round(data, engine, one.process, (first, last))
            self._whole.append(data.rounds[-1])
            if busy:
                text = f"its process ran nothing on a GPU; GPU work is in {workers}"
                data.warnings.append(Warned(engine.label, text))
        for whole in self._whole:
            engine = data.engines[whole.engine_id]
            engine.label = engine.name = labels.get(whole.pid, engine.label)
        return marked

    def _detect(self, hints: dict[str, str], offered: Offered = ()) -> None:
        data = self.data
        rounds: list[RoundRecord] = []
        for whole in self._whole:
            rows = self._reader.trace_rows(whole, DETECTED, calls=False)
            events = events_of(rows)
            found = detect(events)
            words = described(events, found)
            if hints:
                words = replace(words, words=f"{hints['ranges']}; {words.words}")
            words = replace(words, candidates=(*_words(offered), *words.candidates)[:6])
            data.steps_found[whole.engine_id] = words
            label = data.engines[whole.engine_id].label
            if found.evidence is None:
                rounds.append(replace(whole, round_id=len(rounds) + 1))
                self._no_steps(label, words, offered)
                continue
            part, unseen = self._recorded(joined(stretches(events, found)))
            made = round_of(part, whole, len(rounds) + 1, 0, 0)
            rounds.append(replace(made, steps_from="detected"))
            words = replace(words, left_out=(*words.left_out, *unseen, *pause_words(part)))
            data.steps_found[whole.engine_id] = words
            if rows.complete_ns is not None:
                text = f"steps were looked for in its first {DETECTED:,} kernels only"
                data.warnings.append(Warned(label, text))
        self._put(rounds)

    def _none(self, why: str, offered: Offered) -> None:
        for whole in self._whole:
            words = StepsFound("none", why, candidates=_words(offered))
            self.data.steps_found[whole.engine_id] = words
            self._no_steps(self.data.engines[whole.engine_id].label, words, offered)

    def _put(self, rounds: list[RoundRecord]) -> None:
        first = max((r.round_id for r in self._stamped), default=0) + 1
        made = [replace(r, round_id=first + n) for n, r in enumerate(rounds)]
        self.data.rounds[:] = [*self._stamped, *made]

    def _no_steps(self, label: str, words: StepsFound, offered: Offered) -> None:
        there = ", ".join(one_line(c.pattern, 60) for c in offered[:3])
        hint = f"; choose some with --step-range: {there}" if there else ""
        text = f"no steps are known, so only totals are shown: {words.words}{hint}"
        self.data.warnings.append(Warned(label, text))


def _words(offered: Offered) -> tuple[str, ...]:
    return tuple(candidate.words for candidate in offered)


def _marked_words(
    one: Marked, pattern: str, candidate: Candidate | None, offered: Offered
) -> StepsFound:
    words = f"{one.taken:,} NVTX ranges {one_line(pattern, 60)} of thread {one.tid}"
    evidence: list[tuple[str, str | int | float]] = [
        ("pattern", one_line(pattern, 200)),
        ("ranges", one.taken),
        ("thread", one.tid),
    ]
    if candidate is not None and candidate.inside is not None and candidate.reach is not None:
        words += (
            f", {candidate.inside:.1%} of the launches inside, {candidate.reach:.0%} of all"
            " launches from the first to the last"
        )
        evidence += [
            ("inside", round(candidate.inside, 4)),
            ("reach", round(candidate.reach, 4)),
            ("regular", round(candidate.regular, 4)),
        ]
    if candidate is not None and candidate.cycle:
        words += f"; {candidate.cycle} texts repeat in a cycle, which is one step"
    if one.overlapping:
        words += (
            f"; {one.overlapping:,} overlap the one before, so a step lasts from one start to the"
            " next"
        )
    if one.parts:
        names = ", ".join(one_line(part, 40) for part in one.parts[:4])
        words += f"; {names} between two is counted in"
    return StepsFound("marked", words, tuple(evidence), one.left_out, _words(offered))
