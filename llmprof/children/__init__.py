"""How llmprof starts a process of its own and speaks with it; standard library, for session,
worker and tracers.
"""
