from __future__ import annotations

from glora_deploy.plain_progress import EVERY_S, PlainProgress


class Log:
    """A clock that is set by hand, and what was said."""

    def __init__(self) -> None:
        self.now, self.lines = 100.0, list[str]()
        self.progress = PlainProgress(self.lines.append, lambda: self.now)

    def said(self) -> list[str]:
        lines = [*self.lines]
        self.lines.clear()
        return lines


def test_a_line_comes_every_few_seconds_with_rate_and_time_left() -> None:
    log = Log()
    with log.progress as progress:
        bar = progress.add_task("training", total=80, note="")
        for done in range(1, 13):
            log.now += 1
            progress.update(bar, completed=2 * done, note=f"loss {1 / done:.2f}")
        assert log.said() == [
            "training: 10/80, 2.0/s, 0:00:35 left, loss 0.20",
            "training: 20/80, 2.0/s, 0:00:30 left, loss 0.10",
        ]
        progress.update(bar, completed=80, note="loss 0.01")
        assert log.said() == ["training: 80/80, 6.7/s, done in 0:00:12, loss 0.01"]
        progress.update(bar, note="another word on what is complete")
    assert log.said() == []
    assert EVERY_S == 5


def test_what_takes_seconds_each_says_so() -> None:
    log = Log()
    bar = log.progress.add_task("training", total=500, note="")
    log.now += 70
    log.progress.advance(bar)
    assert log.said() == ["training: 1/500, 70.0 s each, 9:42:10 left"]


def test_what_went_on_half_way_has_the_rate_of_what_it_did_itself() -> None:
    log = Log()
    bar = log.progress.add_task("training", total=80, completed=40, note="")
    log.now += 10
    log.progress.update(bar, completed=50)
    assert log.said() == ["training: 50/80, 1.0/s, 0:00:30 left"]


def test_a_stage_is_not_charged_with_what_another_took_meanwhile() -> None:
    log = Log()
    training = log.progress.add_task("training", total=10, note="")
    log.now += 6
    log.progress.update(training, completed=3)
    search = log.progress.add_task("search", total=30, note="")
    log.now += 60
    log.progress.update(search, completed=30)
    log.now += 6
    log.progress.update(training, completed=6)
    assert log.said() == [
        "training: 3/10, 2.0 s each, 0:00:14 left",
        "search: 30/30, 2.0 s each, done in 0:01:00",
        "training: 6/10, 2.0 s each, 0:00:08 left",
    ]


def test_stages_do_not_silence_each_other() -> None:
    log = Log()
    first = log.progress.add_task("read", total=9, note="")
    log.now += 6
    log.progress.update(first, completed=3)
    second = log.progress.add_task("check", total=9, note="")
    log.progress.update(second, completed=9)
    assert [line.partition(",")[0] for line in log.said()] == ["read: 3/9", "check: 9/9"]


def test_the_end_says_what_no_line_has_said() -> None:
    log = Log()
    with log.progress as progress:
        bar = progress.add_task("training", total=9, note="")
        progress.update(bar, completed=2, note="loss 0.5")
        assert log.said() == []
    assert log.said() == ["training: 2/9, loss 0.5"]


def test_a_stage_that_begins_anew_is_counted_anew() -> None:
    log = Log()
    bar = log.progress.add_task("packing", total=90, note="MB")
    log.now += 6
    log.progress.update(bar, completed=60)
    log.progress.reset(bar, total=30)
    log.now += 6
    log.progress.update(bar, completed=6)
    assert log.said()[-1] == "packing: 6/30, 1.0/s, 0:00:24 left, MB"


def test_each_step_of_unknown_length_is_a_line_as_it_begins() -> None:
    log = Log()
    with log.progress as progress:
        job = progress.add_task("digits fp32", total=None, note="")
        for step in ("merging", "merging", "tracing"):
            progress.update(job, note=step)
        assert log.said() == ["digits fp32: merging", "digits fp32: tracing"]
    assert log.said() == []
