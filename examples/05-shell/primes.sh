#!/bin/sh
# Fork from a shell script: counts the primes below a limit, a share in each clone, then goes on from a
# state that was kept. Nothing is passed to the clones, as they have all files and variables of this
# script; a line comes back from each. Runs inside a VM of any image:
#
#   vm=$(sf launch minimal)
#   sf exec $vm -i -- sh -s 20000 4 <examples/05-shell/primes.sh

set -eu

# Of the numbers from 2 on every `step`-th, from `first` on.
count_primes() {
    awk -v first="$1" -v step="$2" -v limit="$3" 'BEGIN {
        for (n = first; n < limit; n += step) {
            for (d = 2; d * d <= n && n % d; d++);
            if (d * d > n) count++
        }
        print count + 0
    }'
}

# One call, and it returns in this VM with 0 and in each clone with its number.
count_in_clones() {
    id=$(sf-guest fork "$clones" --ticket-file /tmp/ticket)
    if [ "$id" -gt 0 ]; then
        sf-guest exit "$(count_primes $((id + 1)) "$clones" "$limit")"
    fi
    total=0
    sf-guest join "$(cat /tmp/ticket)" >/tmp/results
    while read -r id status value; do
        echo "clone $id: $status $value"
        [ "$status" = exited ] && total=$((total + value))
    done </tmp/results
    echo "primes below $limit: $total"
}

# `checkpoint` returns once here, and once in every clone that is made of it, then or later.
go_on_from_checkpoint() {
    echo "before the checkpoint" >/tmp/state
    set -- $(sf-guest checkpoint)
    if [ "$3" = 1 ]; then
        sf-guest exit "clone $2 finds: $(cat /tmp/state)"
    fi
    echo "after the checkpoint" >/tmp/state
    checkpoint=$1
    set -- $(sf-guest ticket 2)
    sf-guest create-clones "$checkpoint" "$1"
    sf-guest join "$1"
    echo "this VM finds: $(cat /tmp/state)"
}

main() {
    limit=${1:-20000}
    clones=${2:-4}
    count_in_clones
    go_on_from_checkpoint
}

# Called at the end, so that the shell has read all of this before it is forked.
main "$@"
