# A store of the user's own on a host without a Nix that would do, behind base.sh. In it nothing is registered: a path is
# whole as soon as it is there.
# Layout: $base/store/nix/store/HASH-NAME   what a program started from here sees at /nix/store
#         $base/store/closures/HASH-NAME    for each output that was pushed: the names of all that it needs, one a line;
#                                           touched at use
#         $base/store/how.HOST              by which namespaces HOST (a home may be shared) shows it: root, kept, mapped
#         $base/store/root                  an empty directory, to mount on

# rr_namespace HOW: sets rr_flags, for unshare(1), and rr_ids, for enter.sh.
#     root      a mount namespace, which only root may have alone
#     kept      a user namespace around it, and one inside, in which the user is who they are
#     mapped    without that (unshare before util-linux 2.38, or busybox's): the user sees itself as root
rr_namespace() {
    rr_flags='-r -m'
    rr_ids=
    case $1 in
        root) rr_flags=-m ;;
        kept) rr_ids=$(id -u):$(id -g) ;;
    esac
}

# rr_find_unshare: sets rr_unshare, and rr_tools to a PATH that has what enter.sh needs, or returns 1.
rr_find_unshare() {
    rr_tools=$PATH:/usr/sbin:/sbin
    rr_unshare=$(PATH=$rr_tools && command -v unshare)
}

# rr_find_in_user_store OUT PROGRAM: sets rr_program to the program as it will be seen, and rr_how; returns 1 where OUT or
# the way to show it is not there.
rr_find_in_user_store() {
    rr_closure=$rr_home/store/closures/${1##*/}
    [ -e "$rr_closure" ] && rr_find_unshare || return
    IFS= read -r rr_how <"$rr_home/store/how.$(uname -n)" || return
    touch "$rr_closure"
    rr_program=$1/$2
}

# rr_look_up PATH: sets rr_found to where that lies which a program in the store would find there.
rr_look_up() {
    rr_tail=$1
    rr_found=
    rr_links=0
    while rr_tail=${rr_tail#/} && [ -n "$rr_tail" ]; do
        rr_name=${rr_tail%%/*}
        rr_tail=${rr_tail#"$rr_name"}
        case $rr_name in
            ''|.) continue ;;
            ..) rr_found=${rr_found%/*}; continue ;;
        esac
        rr_outside "$rr_found/$rr_name"
        if [ -h "$rr_outside" ] && [ "$rr_links" -lt 40 ]; then
            rr_links=$((rr_links + 1))
            rr_name=$(readlink "$rr_outside")
            case $rr_name in
                /*) rr_found= ;;
            esac
            rr_tail=$rr_name$rr_tail
        else
            rr_found=$rr_found/$rr_name
        fi
    done
    rr_outside "$rr_found"
    rr_found=$rr_outside
}

rr_outside() {
    case $1 in
        /nix|/nix/*) rr_outside=$rr_home/store$1 ;;
        *) rr_outside=$1 ;;
    esac
}

# rr_with_closures COMMAND…: runs it with the lists of all closures behind its words, also of pushes that go on.
rr_with_closures() {
    for rr_line in "$rr_store_here"/closures/* "$rr_store_here"/closures/.tmp-*; do
        [ -f "$rr_line" ] && set -- "$@" "$rr_line"
    done
    "$@" /dev/null
}

# rr_weigh: prints what is in the store rr_store_here, a line each: closure KIB NAME, and path KIB NAME for a path that no
# closure names. Of a path that several closures share, one has the size.
rr_weigh() {
    [ -d "$rr_store_here/nix/store" ] || return 0
    # du(1) of all at once: 5,000 paths take 0.1 s, a process each would take 5 s.
    (cd "$rr_store_here/nix/store" && set -- * && [ "$1" != '*' ] && du -sk "$@") | rr_with_closures awk '
        step == 1 { kib[$2] = $1; next }
        { total[FILENAME] += kib[$1]; delete kib[$1] }
        END {
            for (file in total) { name = file; sub(/.*\//, "", name); print "closure", total[file], name }
            for (name in kib) print "path", kib[name], name
        }' step=1 - step=2
}

# rr_sweep: removes the paths of the store rr_store_here that no closure names.
rr_sweep() {
    rr_names=$(rr_weigh | sed -n 's/^path [0-9]* //p')
    [ -n "$rr_names" ] || return 0
    rr_gone=$rr_store_here/.tmp-gone-$$
    (
        mkdir "$rr_gone" && cd "$rr_store_here/nix/store" || exit
        set -f
        for rr_name in $rr_names; do
            # Only what may be written to can be moved.
            [ -h "$rr_name" ] || [ ! -d "$rr_name" ] || set -- "$@" "$rr_name"
        done
        [ $# = 0 ] || chmod u+w "$@"
        mv $rr_names "$rr_gone"
        # A push that began meanwhile has written its list first and looked then: what it found here goes back.
        rr_names=$(cd "$rr_gone" && ls | rr_with_closures awk '
            step == 1 { gone[$1]; next }
            $1 in gone { print; delete gone[$1] }' step=1 - step=2)
        [ -z "$rr_names" ] || (cd "$rr_gone" && mv $rr_names ../nix/store)
    )
    chmod -R u+w "$rr_gone"
    rm -rf "$rr_gone"
}
