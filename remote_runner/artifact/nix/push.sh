# Asks for a store path, and becomes the server that takes what is missing. Runs behind base.sh and nix/store.sh with:
# nonce systems directory out. Standard input from here on: Nix's serve protocol, if it is asked for.
LC_ALL=C
export LC_ALL
umask 077

say() {
    printf '\n%s %s\n' "$nonce" "$(printf '%s' "$1" | tr '\n' ' ')"
}

end() {
    say "$1"
    exit 0
}

rr_is_system "$systems" || end "system $rr_system"
rr_base "$directory" || end "no-directory $rr_why"
rr_nix_store || end "none"
said=$(mkdir -p "$base/nix/roots" 2>&1) || end "failed $said$(rr_full "$base")"
say "asks $nix_store"
# One command asks whether the path is valid, and keeps it if so; nothing is fetched for that. Presence does not say
# that, absence does (and a program that need not be started is 25 ms).
if [ -e "$out" ] && "$nix_store" --option substitute false --add-root "$base/nix/roots/${out##*/}" -r "$out" > /dev/null 2>&1; then
    end "have $base"
fi
rr_nix_access
case $rr_access in
    root|owner|trusted|untrusted)
        say "serve $rr_access $(id -un) $base"
        exec "$nix_store" --serve --write
        ;;
esac
end "$rr_access $rr_why"
