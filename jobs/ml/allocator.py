"""What the C library is told of memory where the engine has a process of its own, as every job has.

A step asks for what the step before it gave back. By itself glibc hands that to the system and takes it again, page by
page: up to a third of the time of passes through a small model. With this it stays with the process until that ends,
which then holds what each of its threads held at its largest moment. Other C libraries do not read it.
"""

import os

NAME = "GLIBC_TUNABLES"
TUNABLES = {
    "mmap_threshold": 2**25,  # bytes: the most that glibc takes; what is smaller comes from the heap
    "trim_threshold": 2**30,  # of free bytes that may stay at the end of the heap
    "top_pad": 2**26,  # bytes by which the heap grows at least
    "hugetlb": 1,  # large pages, where the kernel gives them to who asks
}


def environment() -> dict[str, str]:
    """For a process that is to be started; what is set already stays."""
    return {NAME: os.environ.get(NAME) or ":".join(f"glibc.malloc.{name}={value}" for name, value in TUNABLES.items())}
