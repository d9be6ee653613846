#!/usr/bin/env bash
# Installs the servers that `fastpaxos bench compare` measures against, and leaves none of them running as a service:
# the benchmark starts its own, with data and ports of its own.
set -euo pipefail

packages=()
command -v etcd >/dev/null || packages+=(etcd-server)
command -v redis-server >/dev/null || packages+=(redis-server)
((${#packages[@]})) || exit 0

as_root=()
[[ $EUID -eq 0 ]] || as_root=(sudo)
# Debian's packages ask this program whether they may start their services; 101 says no.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
fi
echo "installing ${packages[*]}" >&2
"${as_root[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${packages[@]}"
# Nor may they start with the machine.
if [[ -d /run/systemd/system ]]; then
    for package in "${packages[@]}"; do
        "${as_root[@]}" systemctl disable --now --quiet "${package/etcd-server/etcd}"
    done
elif command -v update-rc.d >/dev/null; then
    for package in "${packages[@]}"; do
        "${as_root[@]}" update-rc.d "${package/etcd-server/etcd}" disable
    done
fi
