"""What XLA's compiler is told in tests, where nearly all of the time is that of compiling small networks once."""

from importlib.metadata import version

# Without optimization it takes half the time, and with its older emitters, which 0.11 has no more, a third.
_CHEAP = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
if version('jaxlib').startswith('0.10.'):
    _CHEAP += ' --xla_cpu_use_fusion_emitters=false'


def xla_flags(devices: int, *, cheap: bool = True) -> str:
    """The `XLA_FLAGS` of a process with so many CPU devices; not `cheap` for one that computes for long."""
    return f'--xla_force_host_platform_device_count={devices}' + (f' {_CHEAP}' if cheap else '')
