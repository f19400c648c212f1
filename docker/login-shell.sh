#!/bin/sh
# The login shell of bench. sh and not bash: under sshd bash reads ~/.bashrc even for -c, and a
# forced command must not run what the user wrote.
if [ -e /run/llmprof/forced ]; then
  exec /opt/llmprof/bin/python -I -m llmprof.cli.ssh_command
fi
if [ "$#" -eq 0 ] && [ -t 1 ]; then
  timeout 10 llmprof doctor --banner || true
fi
exec /bin/bash "$@"
