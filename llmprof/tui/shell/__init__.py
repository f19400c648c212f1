"""The app around the pages: main screen, keys, commands, dialogs, clipboard. For `llmprof.tui`."""
