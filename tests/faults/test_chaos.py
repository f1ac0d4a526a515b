"""A sample of the kills of `make chaos`, by ckpt-chaos."""

import pytest

from tests.faults.chaos import run_chaos

pytestmark = pytest.mark.program


def test_a_run_killed_at_file_events_resumes_its_newest_checkpoint_bit_for_bit(tmp_path):
    rows = run_chaos('demo', 'before,torn,term', 12, tmp_path / 'work')
    assert len(rows) == 13  # with a run that is not killed
    assert {row.label: row.verdict for row in rows if row.verdict != 'PASS'} == {}
    assert sum(row.crashed for row in rows) >= 8  # SIGTERM may let the run finish
