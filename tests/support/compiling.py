"""What XLA's compiler is told in tests, where nearly all of the time is that of compiling small networks once."""

# Without optimization it takes half the time, and with one loop for each operation a third.
_CHEAP = (
    '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true '
    '--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters'
)


def xla_flags(devices: int, *, cheap: bool = True) -> str:
    """The `XLA_FLAGS` of a process with so many CPU devices; not `cheap` for one that computes for long."""
    return f'--xla_force_host_platform_device_count={devices}' + (f' {_CHEAP}' if cheap else '')
