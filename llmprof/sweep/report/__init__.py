"""The report of a sweep as a file: pictures, page, tables. ``formats.write`` is the way in."""
