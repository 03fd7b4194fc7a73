"""What the terminal says of a comparison."""

from pathlib import Path

import numpy as np
import pandas as pd

from minirec.report.summary import comparison_text


def test_a_line_has_mean_and_deviation_over_the_seeds_and_what_the_main_experiment_gains_over_it():
    table = pd.DataFrame({"model": "m", "selector": "s", "method": "minirec", "budget": ["64", "128"], "seeds": [2, 1]})
    table = table.assign(mean=[0.2, 0.9], std=[0.14142, np.nan], seconds=[1.5, 9.0], total_seconds=[31.5, 49.0])
    test = {"mean": -0.25, "low": -0.3, "high": 0.1, "p": 0.004, "p_holm": 0.0123, "significant": True}
    tests = {"main": "m/s/minirec-64", "paired_tests": {"m/s/minirec-128": test}, "signals": "own"}
    tests |= {"minus_random": {"m/s/minirec-64": test | {"mean": 0.1, "p_holm": 1.0}}, "minus_full": {}}
    said = comparison_text(table, tests, "ndcg@10", Path())
    main, other = [line.split() for line in said.splitlines() if line.startswith("  m/s/minirec-")]
    assert main == ["m/s/minirec-64", "2", "0.2000", "±", "0.1414", "2", "32", "+0.1000", "(1)"]  # 2 s, 32 s with all
    assert other == ["m/s/minirec-128", "1", "0.9000", "9", "49", "-0.2500", "(0.012)"]
    assert "main: m/s/minirec-64." in said
    assert "one proxy" not in said
    lost = comparison_text(table.assign(total_seconds=np.nan), tests, "ndcg@10", Path())
    (main,) = [line.split() for line in lost.splitlines() if line.startswith("  m/s/minirec-64")]
    assert main[4:7] == ["0.1414", "2", "unknown"]
    assert "one proxy for all seeds" in comparison_text(table, tests | {"signals": "shared"}, "ndcg@10", Path())
