import platform
import subprocess
import sys

import dnarch_eqx as dn


# How many pages are mapped anew by the second and third of three arrays of 256 MiB.
FAULTS = """
import resource
import numpy as np

faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for i in range(3):
    np.ones(2**25)
    if i == 0:
        start = faults()
print(faults() - start)
"""


def faults(first: str) -> int:
    ran = subprocess.run(
        [sys.executable, "-c", first + FAULTS], capture_output=True, text=True, check=True
    )
    return int(ran.stdout)


def test_memory_is_kept():
    if platform.libc_ver()[0] != "glibc":
        assert not dn.runtime.keep_memory()
        return
    # In pages of 2 MiB, if the system gives those, 256; in the usual ones 131,072.
    assert faults("import dnarch_eqx") >= 200
    assert faults("import dnarch_eqx as dn; assert dn.runtime.keep_memory()") < 60
