# What preflight wants to know of a board, a line each: har:NAME=VALUE. Reads only, needs no Python, and ends well always.
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
opt=/opt/har-agent

tell() { printf 'har:%s=%s\n' "$1" "$2"; }

tell now "$(date +%s)"
# shellcheck source=/dev/null
tell system "$(. /etc/os-release 2>/dev/null && echo "$ID $VERSION_ID")"
# shellcheck source=/dev/null
tell system_name "$(. /etc/os-release 2>/dev/null && echo "$PRETTY_NAME")"
tell machine "$(uname -m)"
tell bits "$(getconf LONG_BIT 2>/dev/null)"
tell systemd "$(systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p')"
tell booted "$(test -d /run/systemd/system && echo systemd)"
tell user "$(id -u)"

folder=$opt
while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
tell free_mb "$(df -Pm "$folder" | awk 'NR == 2 {print $4}')"

# Each Python that is one: path, version tag, bits. The system's own comes first.
tell pythons "$(for name in python3 python3.13 python3.12 python3.11 "$opt"/python/*/bin/python3; do
    path=$(command -v "$name" 2>/dev/null) || continue
    # python3 will be another one after the next upgrade of the system: its virtual environments would break.
    path=$(readlink -f "$path")
    "$path" -I -c 'import struct, sys, venv
print(sys.argv[1], "cp%d%d" % sys.version_info[:2], struct.calcsize("P") * 8, end=";")' "$path" 2>/dev/null
done)"

# Drop-ins of the unit that this board needs.
tell drop_ins "$(systemctl -q is-active chrony.service ntpsec.service ntp.service ntpd.service openntpd.service 2>/dev/null && echo clock
[ -e /proc/self/ns/user ] || echo no-user-namespaces)"

tell live "$(basename "$(readlink "$opt/current" 2>/dev/null)" 2>/dev/null)"
tell verified "$(cat "$opt/deployments/verified/release" 2>/dev/null)"
tell unverified "$(test -e "$opt/deployments/unverified" && echo yes)"
tell installed "$(cd "$opt/releases" 2>/dev/null && for stamp in */.proven; do
    [ ! -e "$stamp" ] || printf '%s;' "${stamp%/.proven}"
done)"
