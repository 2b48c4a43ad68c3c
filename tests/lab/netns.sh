#!/usr/bin/env bash
# netns.sh: hosts h1..hN on one bridge, each in a network namespace, with links that can be cut. Needs root, iproute2 and nftables.
#   up N         build N hosts; host I has the address SUBNET.I, this machine has SUBNET.254
#   down         remove them, with every process in them
#   exec I CMD   run CMD in host I
#   cut A B      drop everything between A and B, both ways
#   isolate A    cut A from every other host
#   heal         undo all cuts
# Environment: LAB (prefix of all names; several labs coexist), SUBNET (first three numbers of the addresses).
set -euo pipefail

LAB=${LAB:-plx}
SUBNET=${SUBNET:-10.77.0}
BRIDGE=$LAB-br

die() {
  echo "netns.sh: $*" >&2
  exit 1
}

namespace() { echo "$LAB-h$1"; }
port() { echo "$LAB-v$1"; } # the bridge's end of host $1's cable

hosts() { ip netns list | awk '{print $1}' | { grep "^$LAB-h" || true; } | sed "s/^$LAB-h//" | sort -n; }

# One direction of a link. Traffic between hosts is forwarded by the bridge, so its rules see every frame; this machine's own do not pass here.
drop() { nft add rule bridge "$LAB" links iifname "$(port "$1")" oifname "$(port "$2")" drop; }

up() {
  local count=$1 i
  [[ $(id -u) == 0 ]] || die "not root"
  command -v ip >/dev/null || die "iproute2 is not installed"
  command -v nft >/dev/null || die "nftables is not installed"
  ip link add "$BRIDGE" type bridge || die "no bridges here"
  ip addr add "$SUBNET.254/24" dev "$BRIDGE"
  ip link set "$BRIDGE" up
  nft add table bridge "$LAB"
  nft "add chain bridge $LAB links { type filter hook forward priority 0; policy accept; }"
  for ((i = 1; i <= count; i++)); do
    ip netns add "$(namespace "$i")"
    ip link add "$(port "$i")" type veth peer name eth0 netns "$(namespace "$i")"
    ip link set "$(port "$i")" master "$BRIDGE" up
    ip -n "$(namespace "$i")" addr add "$SUBNET.$i/24" dev eth0
    ip -n "$(namespace "$i")" link set lo up
    ip -n "$(namespace "$i")" link set eth0 up
  done
}

down() {
  local i
  for i in $(hosts); do
    ip netns pids "$(namespace "$i")" | xargs -r kill -9 2>/dev/null || true
    ip link del "$(port "$i")" 2>/dev/null || true
    ip netns del "$(namespace "$i")"
  done
  nft delete table bridge "$LAB" 2>/dev/null || true
  ip link del "$BRIDGE" 2>/dev/null || true
}

command=${1:-help}
shift || true
case $command in
  up)
    trap '[[ $? == 0 ]] || down' EXIT # a lab half built is removed
    up "${1:?number of hosts}"
    ;;
  down) down ;;
  exec) host=${1:?host}; shift; exec ip netns exec "$(namespace "$host")" "$@" ;;
  cut) drop "${1:?host}" "${2:?host}"; drop "$2" "$1" ;;
  isolate)
    for other in $(hosts); do
      [[ $other == "${1:?host}" ]] || { drop "$1" "$other"; drop "$other" "$1"; }
    done
    ;;
  heal) nft flush chain bridge "$LAB" links ;;
  *) sed -n '2,10p' "${BASH_SOURCE[0]}" ;;
esac
