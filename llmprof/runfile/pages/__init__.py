"""Many rows at once: as pages of SQLite's file format, which SQLite takes over without looking into
a row, or value by value where that can't be. Used by ``runfile.database`` only."""
