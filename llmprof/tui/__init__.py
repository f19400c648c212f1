"""The Textual app. Only here are textual and rich imported."""
