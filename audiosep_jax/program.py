"""The first import of every program: from then on, Ctrl-C ends it without a traceback while it imports the rest.

No library module imports this.
"""

from audiosep_jax.interrupts import begin_program

begin_program()
