"""The timeline: rows, navigation, inspector."""
