#!/bin/sh
# A broker, a dispatcher and two cars by hand, as in the README, and one job.
#
#   make setup models && . .venv/bin/activate && sh examples/by-hand.sh
#
# Each line that ends in & may as well run in a terminal of its own. Kill any of the four with
# SIGKILL and start it again: nothing is lost.
set -eu

state=${STATE:-.data/by-hand}
mkdir -p "$state"

pids=
finish() {
  status=$?
  trap - EXIT
  kill $pids 2>/dev/null || :
  wait
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

edge-runtime broker --port 1883 &
pids="$pids $!"
edge-runtime dispatcher --store "$state/dispatcher.db" --models .data/models &
pids="$pids $!"
for car in car-1 car-2; do
  edge-runtime vehicle --id "$car" --state-dir "$state/$car" --policy examples/policy.toml \
    --sensors simulated &
  pids="$pids $!"
done

edge-runtime submit --model pp-ocr .data/demo/scenetext01.jpg .data/demo/page.png
edge-runtime fleet list
