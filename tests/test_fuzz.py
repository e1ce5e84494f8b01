"""Every kind of foreign input, changed in thousands of ways: a result or a named error, in bounded memory and time."""

import contextlib
import faulthandler
import resource
from random import Random

import pytest
from fuzzing import HANG_SECONDS, run_one, targets
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutated

MORE_BYTES = 1 << 30  # of address space that one input may take on top of what the process has
NUM_EXAMPLES = {"metrics": 60, "photo": 120, "config": 25, "index": 150, "npy-shard": 100}


@contextlib.contextmanager
def bounded():
    """Memory beyond the bound is a MemoryError, which no target may raise; a hang ends the process with its stack."""
    pages = int(open("/proc/self/statm").read().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE_BYTES, limits[1]))
    faulthandler.dump_traceback_later(5 * HANG_SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.hypothesis  # again in `make test-slow`, with more examples
@pytest.mark.parametrize("name", targets())
def test_every_changed_input_is_read_or_refused(name, tmp_path):
    target = targets()[name]
    seeds = target.seeds()
    for seed in seeds:
        run_one(target, seed, tmp_path)  # also imports what there is to import

    num_examples = min(NUM_EXAMPLES.get(name, 300), settings().max_examples)

    @settings(max_examples=num_examples, deadline=None, derandomize=True, database=None)
    @given(seed=st.sampled_from(seeds), number=st.integers(0, 2**32))
    def check(seed, number):
        run_one(target, mutated(seed, Random(number), seeds), tmp_path)

    with bounded():
        check()
