#!/bin/bash
# Starts sshd for bench. Root only to let sshd change users; see docs/container.md for the variables.
set -euo pipefail

state=/run/llmprof
mounted_keys=/etc/llmprof/authorized_keys
kept_host_keys=/etc/llmprof/host_keys
port=${SSH_PORT:-2222}
grace_s=8 # docker stop kills after 10

die() {
  printf 'llmprof: %s\n' "$1" >&2
  exit 2
}

[[ $(id -u) == 0 ]] || die "the entrypoint runs as root (sshd becomes bench); leave out --user"
[[ $port =~ ^[0-9]{1,5}$ ]] || die "SSH_PORT=$port is not a port"
{ install -d -m 0755 "$state" && install -d -m 0755 /run/sshd; } 2>/dev/null ||
  die "/run cannot be written: add --tmpfs /run"

authorized_keys() {
  local file=$state/authorized_keys lines valid
  # Without DAC_OVERRIDE root reads only what everybody may read.
  if [[ -e $mounted_keys && ! -r $mounted_keys ]]; then
    die "$mounted_keys cannot be read: chmod a+r on the host (public keys are no secret)"
  fi
  {
    if [[ -n ${AUTHORIZED_KEYS:-} ]]; then printf '%s\n' "$AUTHORIZED_KEYS"; fi
    if [[ -r $mounted_keys ]]; then cat "$mounted_keys"; fi
  } | sed 's/\r$//; s/^[[:space:]]*//' >"$file"
  chmod 0644 "$file"
  if grep -q 'PRIVATE KEY' "$file"; then
    rm -f "$file"
    die "AUTHORIZED_KEYS holds a private key: give the line of the .pub file, and make a new key"
  fi
  lines=$(grep -c '^[^#]' "$file" || true)
  ((lines > 0)) ||
    die "nobody could log in: set AUTHORIZED_KEYS=\"\$(cat ~/.ssh/id_ed25519.pub)\" or mount $mounted_keys"
  valid=$({ ssh-keygen -l -f "$file" 2>/dev/null || true; } | wc -l)
  ((valid == lines)) || die "$((lines - valid)) of $lines authorized keys cannot be read: one public key a line"
}

host_key() {
  local folder=$state/host_keys
  if [[ -d $kept_host_keys && -w $kept_host_keys ]]; then folder=$kept_host_keys; fi
  install -d -m 0700 "$folder"
  host_key_file=$folder/ssh_host_ed25519_key
  if [[ ! -e $host_key_file ]]; then
    ssh-keygen -q -t ed25519 -N '' -C llmprof -f "$host_key_file"
  fi
  printf 'llmprof: host key %s\n' "$(ssh-keygen -l -f "$host_key_file.pub")"
}

# sshd gives its sessions a clean environment: what the image and docker run -e said is passed on.
environment() {
  local name value words=()
  for name in PATH LANG TZ LD_LIBRARY_PATH CUDA_HOME CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER \
    NVIDIA_VISIBLE_DEVICES NVIDIA_DRIVER_CAPABILITIES OMP_NUM_THREADS MKL_NUM_THREADS \
    LLMPROF_EXTENSIONS_DIR; do
    value=${!name:-}
    [[ -n $value ]] || continue
    [[ $value != *[$'"\\\n\r']* ]] || die "$name holds a quote, a backslash or a line break"
    words+=("\"$name=$value\"")
  done
  printf 'SetEnv %s\n' "${words[*]}"
}

forced() {
  case ${LLMPROF_ONLY:-0} in
    0 | '') rm -f "$state/forced" ;;
    1)
      : >"$state/forced"
      printf '%s\n' 'ForceCommand /opt/llmprof/bin/python -I -m llmprof.cli.ssh_command'
      ;;
    *) die "LLMPROF_ONLY=$LLMPROF_ONLY: 1 allows llmprof only, 0 a shell too" ;;
  esac
}

configuration() {
  printf 'Port %s\nHostKey %s\n' "$port" "$host_key_file"
  if [[ -n ${SSH_ADDRESS:-} ]]; then printf 'ListenAddress %s\n' "$SSH_ADDRESS"; fi
  environment
  forced
  cat /etc/llmprof/sshd_config
}

# An empty volume or tmpfs in place of the home belongs to root.
home() {
  if [[ $(stat -c %u /home/bench) == 0 ]]; then
    chmod 0755 /home/bench
    chown bench:bench /home/bench
  fi
}

# Every session hears that its connection is gone: llmprof then ends its run and keeps it.
# listener → monitor of a connection (root) → its sshd (bench) → shell or command
stop() {
  local monitors leaders
  trap '' TERM INT
  monitors=$(pgrep -P "$sshd" || true)
  leaders=$(children "$(children "$monitors")")
  # shellcheck disable=SC2086
  kill -HUP $leaders 2>/dev/null || true
  # shellcheck disable=SC2086
  kill -TERM "$sshd" $monitors 2>/dev/null || true
  for ((waited = 0; waited < grace_s * 10; waited++)); do
    # shellcheck disable=SC2086
    kill -0 $leaders 2>/dev/null || break
    sleep 0.1
  done
  exit 0
}

children() {
  local parents=${1//$'\n'/,}
  if [[ -n $parents ]]; then pgrep -P "$parents" || true; fi
}

authorized_keys
host_key
home
configuration >"$state/sshd_config"
/usr/sbin/sshd -t -f "$state/sshd_config" || die "sshd refuses its configuration"
trap stop TERM INT
/usr/sbin/sshd -D -e -f "$state/sshd_config" &
sshd=$!
wait "$sshd"
