# Takes an artifact into the host's cache. Runs behind base.sh with: nonce systems hash kib limit_kib directory eager
# pause_s.
# Standard input from here on: a tar stream whose last entry is the empty file `complete`.
LC_ALL=C
export LC_ALL
umask 077

say() {
    printf '\n%s %s\n' "$nonce" "$1"
}

# The last word. What was sent without being asked for is taken off the wire, or the sender would find it cut.
end() {
    say "$(printf '%s' "$1" | tr '\n' ' ')"
    [ -z "$eager" ] || cat > /dev/null
    exit 0
}

rr_is_system "$systems" || end "system $rr_system"
# A connection that is lost without a word leaves tar waiting for ever: it ends when nothing has come for four pauses.
# One that has not begun, or waits for its turn or the disk (R, D), waits for this host, which may be slow.
watch() {
    exec < /dev/null > /dev/null 2>&1
    trap 'kill "$!"; exit 0' TERM
    quiet=0
    last=
    pid=
    while [ "$quiet" -lt 4 ]; do
        sleep "$pause_s" &
        wait "$!"
        size=$(du -sk "$aside") || exit 0
        [ "$size" = "$last" ] && quiet=$((quiet + 1)) || quiet=0
        last=$size
        read -r pid < "$aside/pid" && read -r state < "/proc/$pid/stat" || state=
        [ -n "$pid" ] || quiet=0
        case ${state##*) } in R*|D*) quiet=0 ;; esac
    done
    : > "$aside/quiet"
    kill -s KILL "$pid"
    sleep 5 &
    wait "$!"
    kill -s KILL $$
    rm -rf "$aside"
}

rr_base "$directory" || end "no-directory $rr_why"
cache=$base/artifacts
if rr_artifact "$hash"; then
    (: > "$cache/$hash/used") 2> /dev/null
    end "have $base"
fi
command -v tar > /dev/null 2>&1 || end "no-tool tar"

aside=$cache/.tmp-$nonce
said=$(mkdir -p "$aside" 2>&1) || end "failed $said"
watch &
watch=$!
trap 'kill "$watch" 2> /dev/null; wait "$watch"; rm -rf "$aside"' EXIT
[ -n "$eager" ] || say "send $base"
# tar's status would get lost in the pipe, so its success is said; tail, because it has a line for each file that fails.
said=$( { (cd "$aside" && exec sh -c 'echo $$ > pid && exec tar -xf -') && echo "unpacked $nonce"; } 2>&1 | tail -n 5)
if [ -e "$aside/quiet" ]; then
    say quiet
    exit 0
fi
case $said in
    *"unpacked $nonce"*) ;;
    *) end "failed $said$(rr_full "$aside")" ;;
esac
[ -e "$aside/complete" ] || end "failed the stream ended early"
rm "$aside/complete" "$aside/pid"
said=$( (: > "$aside/used" && echo "$kib" > "$aside/kib") 2>&1) || end "failed $said"
said=$(mv "$aside" "$cache/$hash" 2>&1) || end "failed $said"
# Had somebody else brought it meanwhile, ours went into theirs.
rm -rf "$cache/$hash/.tmp-$nonce"
say "done $base"

# Room for the next ones: the least recently used go first; not one of the last minutes, not one that a run names.
total=0
for file in "$cache"/*/kib; do
    read -r size < "$file" && total=$((total + size))
done
if [ "$total" -gt "$limit_kib" ]; then
    for old in $(ls -1tr "$cache"/*/used); do
        [ "$total" -gt "$limit_kib" ] || break
        old=${old%/used}
        old=${old##*/}
        [ "$old" != "$hash" ] && read -r size < "$cache/$old/kib" || continue
        [ -n "$(find "$cache/$old/used" -mmin +10 2> /dev/null)" ] || continue
        grep -q "^artifact=$old" "$base"/runs/*/record 2> /dev/null && continue
        mv "$cache/$old" "$cache/.tmp-$nonce-$old" && rm -rf "$cache/.tmp-$nonce-$old" && total=$((total - size))
    done
fi 2> /dev/null
# What a push left that was cut off; none takes a day.
find "$cache" -name '.tmp-*' -prune -mmin +1440 -exec rm -rf '{}' ';' 2> /dev/null
exit 0
