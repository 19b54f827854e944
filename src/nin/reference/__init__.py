"""The answers that are right: what exports carry and the gate holds every runtime against."""
