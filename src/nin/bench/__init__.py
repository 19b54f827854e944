"""One benchmark for every way to run a model: in process, in C++, served."""
