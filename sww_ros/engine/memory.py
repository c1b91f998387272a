"""Whether a checkpoint fits into the memory that is left."""

from __future__ import annotations

from pathlib import Path

MEMINFO = Path('/proc/meminfo')
CGROUP = Path('/sys/fs/cgroup')
WEIGHTS = ('*.safetensors', '*.bin')
GIB = 1 << 30


def available_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Return the memory that a new process can have [bytes]; None where Linux does not say."""
    try:
        fields = dict(line.split(':', 1) for line in meminfo.read_text().splitlines())
        available = int(fields['MemAvailable'].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:  # A container may be allowed less than the machine has.
        limit = int((cgroup / 'memory.max').read_text())
        used = int((cgroup / 'memory.current').read_text())
        stat = dict(line.split() for line in (cgroup / 'memory.stat').read_text().splitlines())
        available = min(available, limit - used + int(stat['inactive_file']))
    except (OSError, KeyError, ValueError):
        pass  # No limit ('max'), or no such control group.
    return max(available, 0)


def checkpoint_bytes(model: str) -> int:
    """Return the size of the weights in a checkpoint directory [bytes]; 0 where unknown."""
    folder = Path(model).expanduser()
    for pattern in WEIGHTS:
        if files := [path for path in folder.glob(pattern) if path.is_file()]:
            return sum(path.stat().st_size for path in files)
    return 0


def check_memory(model: str, available: int | None) -> None:
    """
    Refuse a checkpoint that cannot fit, before it makes the machine hang.

    :param available: free memory [bytes], None if unknown
    :raises ValueError: when the weights alone are larger than that
    """
    needed = checkpoint_bytes(model)
    if available is not None and needed > available:
        raise ValueError(
            f'the checkpoint {model} needs more memory than is left: its weights are '
            f'{needed / GIB:.1f} GiB, {available / GIB:.1f} GiB are available; close other '
            'programs or take a smaller checkpoint')


def resident_bytes(pid: int) -> int:
    """Return the memory that a process holds [bytes]; 0 when it is gone."""
    try:
        for line in Path(f'/proc/{pid}/status').read_text().splitlines():
            if line.startswith('VmRSS:'):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
