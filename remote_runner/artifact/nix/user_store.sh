# Takes a closure into the user's own store. Runs behind base.sh and user.sh with: nonce systems directory out
# length limit_kib rr_enter.
# Standard input: the names of the closure's paths, one a line (length bytes); then, when asked for, a tar stream of those
# that are missing, whose last entry is the empty file `complete`.
# Answers: system NAME | have BASE | refused WORDS | no-tool TOOL | no-directory WORDS | failed WORDS, or
#          missing NUMBER… (positions in the list, from 1; any number of these), send BASE, and then done BASE
LC_ALL=C
export LC_ALL
umask 022
# A sender that has gone is noticed by the end of the stream, and what came until then has to go.
trap '' PIPE
trap 'exit 1' HUP INT TERM

say() {
    printf '\n%s %s\n' "$nonce" "$1"
}

end() {
    say "$(printf '%s' "$1" | tr '\n' ' ')"
    exit 0
}

# Tries the whole of it, so that a start finds what was found here. The last words are those of the simplest way.
find_how() {
    how=$store/how.$(uname -n)
    [ -s "$how" ] && return
    rr_find_unshare || { why="there is no unshare(1)"; return 1; }
    ways='kept mapped'
    [ "$(id -u)" != 0 ] || ways=root
    for way in $ways; do
        rr_namespace "$way"
        why=$("$rr_unshare" $rr_flags /bin/sh -c "$rr_enter" "$aside/try" "$store" / "$rr_tools" "$rr_unshare" "$rr_ids" \
            /bin/sh -c : 9>&1 2>&1 </dev/null) && echo "$way" >"$how" && return
    done
    return 1
}

rr_is_system "$systems" || end "system $rr_system"
rr_base "$directory" || end "no-directory $rr_why"
store=$base/store
paths=$store/nix/store
closure=$store/closures/$out
if [ -e "$closure" ] && [ -s "$store/how.$(uname -n)" ]; then
    touch "$closure"
    end "have $base"
fi
command -v tar >/dev/null 2>&1 || end "no-tool tar"
aside=$store/.tmp-$nonce
pending=$store/closures/.tmp-$nonce
trap 'chmod -R u+w "$aside" 2>/dev/null; rm -rf "$aside" "$pending"' EXIT
said=$(mkdir -p "$paths" "$store/closures" "$store/root" "$aside/new" 2>&1) || end "failed $said$(rr_full "$base")"
find_how || end "refused $why"

# From here on no cleaning takes what this list names. Some head(1) reads further, but nothing else is sent by now.
said=$( (head -c "$length" >"$pending") 2>&1) || end "failed $said$(rr_full "$store")"
numbers=
number=0
while IFS= read -r name; do
    number=$((number + 1))
    if [ -e "$paths/$name" ] || [ -h "$paths/$name" ]; then
        continue
    fi
    numbers="$numbers $number"
    # An answer is one line of a few KiB.
    [ "${#numbers}" -lt 2000 ] || { say "missing$numbers"; numbers=; sent=1; }
done <"$pending"
[ -z "$numbers" ] || { say "missing$numbers"; sent=1; }

if [ -n "${sent-}" ]; then
    say "send $base"
    said=$( { (cd "$aside/new" && tar -xf -) && echo "unpacked $nonce"; } 2>&1 | tail -n 5)
    case $said in
        *"unpacked $nonce"*) ;;
        *) end "failed $said$(rr_full "$aside")" ;;
    esac
    cd "$aside/new" && [ -e complete ] || end "failed the stream ended early"
    rm complete
    # As in any store nothing may be written to. A directory that is to be moved has to wait for that.
    said=$(find . -type d -path './*/*' -exec chmod 555 {} + 2>&1) || end "failed $said"
    set --
    for name in *; do
        if [ -d "$name" ] && ! [ -h "$name" ]; then
            set -- "$@" "$name"
        fi
    done
    # What somebody else has brought meanwhile stays as it is.
    said=$(mv ./* "$paths" 2>&1)
    cd "$paths" || end "failed"
    [ $# = 0 ] || chmod 555 "$@" 2>/dev/null
    while IFS= read -r name; do
        [ -e "$paths/$name" ] || [ -h "$paths/$name" ] || end "failed $name: $said$(rr_full "$paths")"
    done <"$pending"
fi
said=$(mv "$pending" "$closure" 2>&1) || end "failed $said"
say "done $base"

# Room for the next ones: the closures that were not used for longest go first; not one of the last minutes, not one that
# a run names.
rr_store_here=$store
over_limit() {
    set -- $(du -sk "$paths")
    [ "$1" -gt "$limit_kib" ]
}
if [ -n "${sent-}" ] && over_limit; then
    for old in $(ls -1tr "$store/closures"); do
        [ "$old" != "$out" ] && [ -n "$(find "$store/closures/$old" -mmin +10)" ] || continue
        # A run has its record before it looks for its list.
        mv "$store/closures/$old" "$pending"
        if grep -q "^artifact=/nix/store/$old\$" "$base"/runs/*/record; then
            mv "$pending" "$store/closures/$old"
            continue
        fi
        rm "$pending"
        rr_sweep
        over_limit || break
    done
fi 2>/dev/null
# What a push left that was cut off; none takes a day.
find "$store" "$store/closures" -name '.tmp-*' -prune -mmin +1440 -exec chmod -R u+w {} ';' -exec rm -rf {} ';' 2>/dev/null
exit 0
