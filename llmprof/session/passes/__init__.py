"""The passes of a session: whose turn it is, how long, until when. ``session.run`` calls it."""
