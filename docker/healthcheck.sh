#!/bin/bash
# Healthy: sshd greets. It never logs in.
set -euo pipefail
address=${SSH_ADDRESS:-127.0.0.1}
case $address in 0.0.0.0 | ::) address=127.0.0.1 ;; esac
exec 3<>"/dev/tcp/$address/${SSH_PORT:-2222}"
IFS= read -r -t 3 greeting <&3
[[ $greeting == SSH-2.0-* ]]
