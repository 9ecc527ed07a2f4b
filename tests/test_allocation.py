"""What happens when memory runs out: a clean error, and nothing of the caller's is changed."""

import subprocess
import sys

import pytest

OUT_OF_MEMORY = """
import resource, torch, stprune
torch.set_num_threads(1)
n = 40_000_000
table = stprune.ScoreTable(n)
keys = torch.rand(n, generator=torch.Generator().manual_seed(1))
table.update(torch.arange(1000), keys[:1000])
out = torch.full((n // 2,), -7)
before, scores = keys.clone(), table.scores.clone()
small = keys[:1_000_000].clone()
stprune.select(small, 1000)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limits = resource.getrlimit(resource.RLIMIT_AS)
calls = {
    "select": lambda: stprune.select(keys, n // 2),
    "select out": lambda: stprune.select(keys, n // 2, out=out),
    "topk": lambda: stprune.topk(keys, n // 2),
    "draw": lambda: stprune.draw(keys, seed=1, epoch=1),
    "draw out": lambda: stprune.draw(keys, seed=1, epoch=1, out=out),
    "draw_weighted": lambda: stprune.draw_weighted(keys, n // 2, seed=1, epoch=1),
    "shuffle": lambda: stprune.shuffle(keys, seed=1, epoch=1),
    "plan": lambda: stprune.plan_epoch(table.scores, keep_ratio=0.5, epoch=1, seed=1),
}
for name, call in calls.items():
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 20), limits[1]))
    try:
        call()
        print("no error:", name)
    except (RuntimeError, MemoryError) as error:
        assert "out of memory" in str(error) or isinstance(error, MemoryError), (name, error)
        print("refused")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert torch.equal(keys, before) and torch.equal(table.scores, scores) and int(out.max()) == -7, name
    assert stprune.select(small, 1000).numel() == 1000
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_allocation_failure_changes_nothing():
    result = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:-1] == ["refused"] * 8
