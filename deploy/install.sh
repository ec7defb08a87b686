#!/bin/sh
# Install one release of edge-runtime on this computer, as root:
#
#     deploy/install.sh vehicle 0.1.0                 from the package index
#     deploy/install.sh vehicle 0.1.0 /media/wheels   from a folder of wheels, without a network
#     deploy/install.sh vehicle,ocr,vss 0.1.0         with extras: text on pictures, KUKSA
#
# Each release has a virtual environment of its own, /opt/edge-runtime/<version>; the link
# /opt/edge-runtime/current names the one that runs. Only a first installation sets the link;
# after that `edge-runtime upgrade` does, which goes back when the new release is not healthy.
# Configuration that is there already is left as it is. Nothing is started.
set -eu

extras=${1:-}
role=${extras%%,*}
version=${2:-}
wheels=${3:-}
here=$(cd "$(dirname "$0")" && pwd)
opt=/opt/edge-runtime
etc=/etc/edge-runtime

case "$role" in vehicle | dispatcher) ;; *)
  echo "usage: $0 vehicle|dispatcher[,EXTRA...] VERSION [FOLDER-OF-WHEELS]" >&2
  exit 2
  ;;
esac
case "$extras" in *[!a-z,]* | *,)
  echo "error: extras are names with commas between, such as vehicle,ocr, not '$extras'" >&2
  exit 2
  ;;
esac
case "$version" in '' | current | .* | */*)
  echo "error: VERSION must be one of edge-runtime, such as 0.1.0, not '$version'" >&2
  exit 2
  ;;
esac

install_into() {
  set -- "$1/bin/python" -m pip install --quiet --disable-pip-version-check
  [ -z "$wheels" ] || set -- "$@" --no-index --find-links "$wheels"
  "$@" "edge-runtime[$extras]==$version"
}

if [ -e "$opt/$version" ]; then
  # The other role's environment on the same computer.
  install_into "$opt/$version"
else
  # Put together under another name: what stands under a version's name is whole. The files of an
  # environment that name their folder shall name the final one.
  mkdir -p "$opt"
  new="$opt/.new-$version-$$"
  trap 'rm -rf "$new"' EXIT
  python3 -m venv "$new"
  install_into "$new"
  grep -lIr --null "$new" "$new/bin" "$new/pyvenv.cfg" |
    xargs -0 -r sed -i "s|$new|$opt/$version|g"
  sync -f "$new"
  mv -T "$new" "$opt/$version"
fi
[ -e "$opt/current" ] || ln -s "$version" "$opt/current"

install -d -m 0755 "$etc"
[ -e "$etc/$role.toml" ] || install -m 0600 "$here/$role.toml" "$etc/$role.toml"
if [ "$role" = vehicle ]; then
  # An example that says what every key means, and gives no consent: that is the owner's.
  [ -e "$etc/policy.toml" ] || "$opt/$version/bin/python" -c \
    'from edge_runtime.vehicle.policy import example_policy; print(example_policy(), end="")' \
    >"$etc/policy.toml"
  install -m 0644 "$here/systemd/edge-runtime-sleep.service" \
    "$here/systemd/edge-runtime-rollback.service" /etc/systemd/system/
fi
install -m 0644 "$here/systemd/edge-runtime-$role.service" /etc/systemd/system/
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
fi
echo "edge-runtime $version is in $opt/$version; next: edit $etc/$role.toml, then" >&2
echo "systemctl enable --now edge-runtime-$role" >&2
