"""Run tests/faults at full length; print one table and keep it in benchmarks/results/soak.txt.

make soak
"""

import contextlib
import io
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from benchmarks.harness import report
from tests.faults import SOAK

RESULT = Path('benchmarks/results/soak.txt')


class Tally:
    """Count the outcomes of tests, and of the trials that they record."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count one test, or what failed before and after it."""
        if report.when != 'call' and report.passed:
            return
        name = report.nodeid.partition('::test_')[2].partition('[')[0].replace('_', ' ')
        trials = [value for key, value in report.user_properties if key == 'trial']
        for row in [name, *trials]:
            self.outcomes[row][report.outcome] += 1
        longest = [value for key, value in report.user_properties if key == 'seconds']
        if longest:
            self.seconds[name] = max([*longest, self.seconds.get(name, 0)])

    def rows(self) -> list[dict]:
        """Return the rows of the table."""
        return [
            {
                'what': name,
                'trials': outcomes.total(),
                'as promised': outcomes['passed'],
                'failed': outcomes['failed'],
                'skipped': outcomes['skipped'],
                'seconds at most': self.seconds.get(name),
            }
            for name, outcomes in self.outcomes.items()
        ]


def main() -> int:
    """Run, print, keep."""
    if not SOAK:
        return 'this is what `make soak` runs'
    commit = subprocess.run(
        ['git', 'describe', '--always', '--dirty'], capture_output=True, text=True
    ).stdout.strip()
    tally, began = Tally(), time.monotonic()
    code = pytest.main(['tests/faults', '-p', 'no:randomly', '-p', 'no:cacheprovider'], [tally])
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        minutes = round((time.monotonic() - began) / 60)
        report('soak', tally.rows(), commit=commit or 'unknown', minutes=minutes)
    print(text.getvalue())
    RESULT.write_text(text.getvalue().lstrip())
    return int(code)


if __name__ == '__main__':
    sys.exit(main())
