"""What is being done, on stderr: a line that moves, or plain ones beside the Hub's own bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from glora_deploy.console import progress_line, stderr
from glora_deploy.quiet import only_errors


@contextmanager
def steps(title: str, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is being done and for how long."""
    with only_errors(quiet), progress_line(quiet=quiet) as line:
        job = line.add_task(title, total=None, note="")
        yield lambda step: line.update(job, note=step)


def hub_steps(quiet: bool) -> Callable[[str], None]:
    """Lines on stderr between the Hub client's own progress bars, which a live line would break."""
    if not quiet:
        return lambda step: stderr.print(step, soft_wrap=True)
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    return lambda _: None
