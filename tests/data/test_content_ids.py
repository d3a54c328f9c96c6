"""What data and runs are called depends on their content: not on the clock, the host, the place,
the order in which a folder lists its files or that in which Python keeps a set."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = (sys.executable, "-W", "ignore", "-m", "tests.data.content_ids")
HOSTS = {
    "forwards": {"PYTHONHASHSEED": "1", "TZ": "UTC", "OPENBLAS_CORETYPE": "Haswell"},
    "backwards": {
        "PYTHONHASHSEED": "2",
        "TZ": "Asia/Tokyo",
        "OPENBLAS_CORETYPE": "Prescott",
        "OPENBLAS_NUM_THREADS": "1",
        "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3",
    },
}


@pytest.mark.slow
def test_digests_depend_on_content_alone(tmp_path):
    running = {
        order: subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "tests.data.content_ids",
                tmp_path / order,
                order,
            ],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **host, "ISOFLOP_CACHE": str(tmp_path / f"cache-{order}")},
        )
        for order, host in HOSTS.items()
    }
    here, there = (json.loads(process.communicate()[0]) for process in running.values())
    for name in here[0]:
        assert here[0][name] == there[0][name], name
        assert here[1][name] == there[1][name], name
        assert here[0][name] != here[1][name], f"{name}: other content, the same digest"
    assert len({digest for one in here for digest in one.values()}) == 2 * len(here[0])
