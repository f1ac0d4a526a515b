"""Run tests/faults at full length; print one table and keep it in benchmarks/results/soak.txt.

    make soak
    SOAK=100 python -m tests.faults.soak tests/faults/test_kills.py   # one part of it

The parts that are not run keep their rows, so a soak that was cut continues part by part.
"""

import contextlib
import glob
import io
import json
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


def former_rows() -> dict[str, dict]:
    """Return the rows of the kept table by what they are about."""
    if not RESULT.is_file():
        return {}
    kept = json.loads(RESULT.read_text().strip().splitlines()[-1])
    since = {key: kept[key] for key in ('commit', 'date') if key in kept}
    return {row['what']: row | {k: row.get(k, v) for k, v in since.items()} for row in kept['rows']}


def main(parts: list[str]) -> int:
    """Run all parts or the given ones; print and keep the table after each of them."""
    if not SOAK:
        return 'this is what `make soak` runs'
    describe = ['git', 'describe', '--always', '--dirty']
    commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip() or 'unknown'
    date, code = time.strftime('%Y-%m-%d'), 0
    for part in parts or sorted(glob.glob('tests/faults/test_*.py')):
        tally = Tally()
        code |= pytest.main([part, '-p', 'no:randomly', '-p', 'no:cacheprovider'], [tally])
        found = {row['what']: row | dict(commit=commit, date=date) for row in tally.rows()}
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            report('soak', list((former_rows() | found).values()))
        RESULT.write_text(text.getvalue().lstrip())
    print(RESULT.read_text())
    return int(code)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
