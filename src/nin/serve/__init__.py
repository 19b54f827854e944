"""The model repository, an embedded Triton that serves it, and the backends that it lacks."""
