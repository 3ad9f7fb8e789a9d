# Starts one program that sees a user's own store at /nix, and all else as it is. Given to `unshare -m … sh -c` whole:
#     RECORD STORE DIRECTORY PATH UNSHARE IDS PROGRAM ARGUMENT…
# RECORD gets the line entered=1 when only the program's start is left. DIRECTORY: where the program starts. PATH: for
# the tools; the program has its own. UNSHARE: unshare(1). IDS: the user's UID:GID, or nothing to go on as who this is.
# Until the program starts, stderr is not its own, which is descriptor 9.

rr_enter() {
    if [ -d /nix ]; then
        mount --bind "$1/nix" /nix
        return
    fi
    # Nobody but root may make a directory in /. So another root directory, with a /nix and everything that is in /.
    rr_root=$1/root
    mount -t tmpfs -o mode=555,size=1m none "$rr_root" && cd "$rr_root" || return
    # Where the new root lies comes first, or it would show all that was mounted before it a second time.
    rr_first=${rr_root#/}
    rr_first=/${rr_first%%/*}
    set -- ./nix ".$rr_first"
    for rr_entry in /* /.[!.]*; do
        if [ -d "$rr_entry" ] && ! [ -h "$rr_entry" ] && [ "$rr_entry" != "$rr_first" ]; then
            set -- "$@" ".$rr_entry"
        fi
    done
    mkdir "$@" || return
    shift
    # One process for all: 20 of them take 30 ms. Relative, for a fstab(5) separates its words by blanks.
    for rr_entry do
        printf '%s %s none rbind 0 0\n' "${rr_entry#.}" "$rr_entry"
    done >"$rr_table"
    # What cannot be shown, a dead network file system for instance, is an empty directory; what the program needs of
    # it, it will miss by itself.
    mount -a -T "$rr_table"
    mount --bind "${rr_root%/root}/nix" ./nix || return
    set --
    for rr_entry in /* /.[!.]*; do
        [ -h "$rr_entry" ] && set -- "$@" "$rr_entry"
    done
    [ $# = 0 ] || cp -P "$@" . || return
    pivot_root . . && umount -l .
}

rr_table=$0.mounts
rr_path=${PATH-}
PATH=$3
rr_enter "$1" && cd "$2" || exit 125
printf 'entered=1\n' >>"$0" || exit 125
PATH=$rr_path
rr_unshare=$4
rr_ids=$5
shift 5
unset PWD OLDPWD SHLVL
# In one more namespace the user is who they are, and has no capabilities.
[ -z "$rr_ids" ] || set -- "$rr_unshare" -U "--map-user=${rr_ids%:*}" "--map-group=${rr_ids#*:}" "$@"
exec "$@" 2>&9 9>&-
