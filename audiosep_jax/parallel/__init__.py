"""Many devices and many processes: the mesh, what processes agree on, and how they find each other."""
