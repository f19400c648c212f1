"""Traces of torch.profiler (Kineto): one event after the other, into the rows of an nsys export."""
