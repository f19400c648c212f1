"""The recorder that the CUDA driver loads into recorded programs: C sources, and their build.

``recording`` asks ``build.library()`` for the file; the wheel's build calls ``build.prebuild``.
"""
