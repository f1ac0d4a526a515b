"""Run tests/faults at full length; print one table and keep it in benchmarks/results/soak.txt.

    make soak
    SOAK=100 python -m tests.faults.soak tests/faults/test_kills.py   # one part

Parts that are not run keep their rows.
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
    """A pytest plugin that counts the outcomes of tests, and of the trials that they record."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count one test, or a failure before or after it."""
        if report.when != 'call' and report.passed:
            return
        name = report.nodeid.partition('::test_')[2].partition('[')[0].replace('_', ' ')
        for row in [name, *(v for key, v in report.user_properties if key == 'trial')]:
            self.outcomes[row][report.outcome] += 1
        for seconds in (v for key, v in report.user_properties if key == 'seconds'):
            self.seconds[name] = max(seconds, self.seconds.get(name, 0))

    def rows(self, **facts: str) -> dict[str, dict]:
        """Return the rows of the table by name."""
        return {
            name: {
                'what': name,
                'trials': outcomes.total(),
                'as promised': outcomes['passed'],
                'failed': outcomes['failed'],
                'skipped': outcomes['skipped'],
                'seconds at most': self.seconds.get(name),
                **facts,
            }
            for name, outcomes in self.outcomes.items()
        }


def kept_rows() -> dict[str, dict]:
    """Return the rows of the kept table by name."""
    if not RESULT.is_file():
        return {}
    kept = json.loads(RESULT.read_text().strip().splitlines()[-1])
    facts = {key: kept[key] for key in ('commit', 'date') if key in kept}
    return {row['what']: facts | row for row in kept['rows']}


def main(parts: list[str]) -> int:
    """Run all parts or the given ones; print and keep the table after each of them."""
    if not SOAK:
        sys.exit('set SOAK, as `make soak` does')
    describe = ['git', 'describe', '--always', '--dirty']
    commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip() or 'unknown'
    code = 0
    for part in parts or sorted(glob.glob('tests/faults/test_*.py')):
        tally, text = Tally(), io.StringIO()
        code |= pytest.main([part, '-p', 'no:randomly', '-p', 'no:cacheprovider'], [tally])
        rows = kept_rows() | tally.rows(commit=commit, date=time.strftime('%Y-%m-%d'))
        with contextlib.redirect_stdout(text):
            report('soak', list(rows.values()))
        RESULT.write_text(text.getvalue().lstrip())
    print(RESULT.read_text())
    return int(code)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
