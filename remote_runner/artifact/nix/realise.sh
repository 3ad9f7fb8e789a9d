# Keeps a store path from garbage collection; with a derivation, builds it first. Runs behind base.sh with:
# nonce base out drv substitute. Standard input: a line when everything is there; its end when nobody waits any more.
LC_ALL=C
export LC_ALL
umask 077
# Nobody may read what is said here any more. Not ignored, for so it would be in the build as well.
trap : PIPE
trap 'exit 1' HUP INT TERM

end() {
    printf '\n%s %s\n' "$nonce" "$(printf '%s' "$1" | tr '\n' ' ')"
    exit 0
}

IFS= read -r line || exit 0
rr_nix_store || end "failed there is no nix-store any more"
root=$base/nix/roots/${out##*/}
if [ -n "$drv" ]; then
    # The derivation's outputs get roots of their own (NAME, NAME-dev, ...) until the one that counts has one.
    aside=$base/nix/.build-$nonce
    said=$(mkdir -p "$aside" 2>&1) || end "failed $said$(rr_full "$base")"
    trap 'rm -rf "$aside"' EXIT
    # What a build left that was cut off with its machine; its root would stay for ever.
    find "$base/nix" -name '.build-*' -prune -mtime +0 -exec rm -rf {} ';' 2> /dev/null
    exec 3<&0
    "$nix_store" --option substitute "$substitute" --add-root "$aside/out" -r "$drv" > /dev/null 2> "$aside/log" 3<&- &
    build=$!
    (cat <&3 > /dev/null; kill "$build") > /dev/null 2>&1 &
    watch=$!
    wait "$build"
    status=$?
    kill "$watch" 2> /dev/null
    if [ "$status" != 0 ]; then
        tail -n 30 "$aside/log" >&2
        end "unbuilt $status"
    fi
fi
said=$("$nix_store" --option substitute false --add-root "$root" -r "$out" 2>&1) || end "failed $said"
end "rooted"
