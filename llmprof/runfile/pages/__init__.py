"""Many rows at once: written here as pages of SQLite's file format, which SQLite takes over without
looking into a row. Used by ``runfile.database`` only."""
