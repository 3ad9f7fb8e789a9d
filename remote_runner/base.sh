# Where remote-runner lives on a host. Sourced first by every script that runs there; POSIX sh.
# Layout: $base/artifacts/HASH/c/...  an artifact, complete as soon as it is there (c/ holds its files)
#         $base/artifacts/HASH/used   written at each use: which program in it was seen to be one for which machine
#         $base/runs/ID/...           one run

# What a login there may set, and what would then change what we ask tar and grep for, or what cd and sh do and say.
# Not POSIXLY_CORRECT: it changes nothing here, and unsetting it takes bash out of its POSIX mode.
unset TAR_OPTIONS GREP_OPTIONS CDPATH ENV BASH_ENV

rr_newline='
'

# rr_base DIRECTORY: sets base to DIRECTORY, or where it is empty to the first usable candidate: ours, 0700, no link,
# not in others' hands, and programs start there (a home or /tmp may be mounted noexec). Else returns 1, and rr_why says what was wrong.
rr_base() {
    rr_why=
    if [ -n "$1" ]; then
        rr_usable "$1"
        return
    fi
    if [ -n "$HOME" ] && [ "$HOME" != / ]; then
        rr_usable "$HOME/.cache/remote-runner" && return 0
    fi
    rr_uid=$(id -u)
    for rr_parent in /var/tmp /tmp /dev/shm; do
        [ -d "$rr_parent" ] || continue
        rr_usable "$rr_parent/remote-runner-$rr_uid" && return 0
    done
    return 1
}

# Each program started here is one more for each instance (0.8 ms of CPU), so one ls looks at all.
rr_usable() {
    case $1 in
        /*) ;;
        *) rr_no "$1" "not an absolute path"; return 1 ;;
    esac
    if ! [ -d "$1" ]; then
        rr_said=$( (umask 077; mkdir -p "$1") 2>&1) || [ -d "$1" ] || { rr_no "$1" "$rr_said"; return 1; }
    fi
    if [ -h "$1" ] || ! [ -d "$1" ]; then
        rr_no "$1" "not a directory"
        return 1
    fi
    # The owner first: what is somebody else's may be another thing at every look, a link to chmod through for instance.
    if ! [ -O "$1" ]; then
        rr_no "$1" "belongs to user $(set -f; set -- $(ls -ldn "$1"); echo "$3")"
        return 1
    fi
    cd -P "${1%/*}/" || { rr_no "$1" "not to be reached"; return 1; }
    rr_up=${PWD%/}
    rr_place=$1
    set -- /
    while [ -n "$rr_up" ]; do
        set -- "$@" "$rr_up"
        rr_up=${rr_up%/*}
    done
    cd /
    # ls -n says a mode everywhere; stat(1) differs from system to system. The dot tells the place from its parents.
    rr_said=$(ls -ldn "$rr_place/." "$@" 2>&1)
    set -- "$rr_place"
    rr_mode=
    rr_ifs=$IFS
    IFS=$rr_newline
    set -f
    for rr_line in $rr_said; do
        case $rr_line in
            # What lies in it may be anybody's, so taking the permission away now would come too late.
            ?????w*" $1/."|????????w*" $1/.") rr_mode="other users may write to it"; break ;;
            drwx------*" $1/.") rr_mode=ours ;;
            *" $1/.") rr_mode=open ;;
            # In a sticky directory (/tmp) nobody else can rename what is ours; in one that all may write to anybody can.
            d???????w[!tT]*) rr_mode="any user may put another in its place"; break ;;
        esac
    done
    set +f
    IFS=$rr_ifs
    case $rr_mode in
        ours) ;;
        open) rr_said=$(chmod 700 "$1" 2>&1) || { rr_no "$1" "$rr_said"; return 1; } ;;
        *) rr_no "$1" "${rr_mode:-$rr_said}"; return 1 ;;
    esac
    # Most kernels and shells tell a mount without programs by -x; where they do not, its first use does.
    if ! [ -x "$1/.probe" ]; then
        rr_said=$( (umask 077; printf "#!/bin/sh\n" > "$1/.probe.$$" && chmod 700 "$1/.probe.$$" && mv "$1/.probe.$$" "$1/.probe") 2>&1) || {
            rm -f "$1/.probe.$$"
            rr_no "$1" "$rr_said$(rr_full "$1")"
            return 1
        }
        rr_said=$("$1/.probe" 2>&1) || { rr_no "$1" "programs cannot be started there (mounted noexec?)"; return 1; }
    fi
    base=$1
}

# rr_full DIRECTORY: says so when the disk is full. The failed write itself may say "I/O error" (dash) or
# "Wrote only 512 of 10240 bytes" (GNU tar).
rr_full() {
    rr_free=$(set -f; set -- $(df -Pk "$1" 2>/dev/null | tail -n 1); echo "$4")
    [ "${rr_free:-64}" -ge 64 ] 2>/dev/null || echo " (No space left on device)"
}

rr_no() {
    rr_why="$rr_why$1: $2; "
}

# rr_is_system WORDS: whether this machine is one of them, each `uname -s`:`uname -m`:LONG_BIT with 0 for a LONG_BIT that
# nobody tells; sets rr_system to what it is. One that cannot say contradicts nothing.
rr_is_system() {
    rr_bits=$(getconf LONG_BIT 2>/dev/null)
    case $rr_bits in
        32|64) ;;
        *) rr_bits=0 ;;
    esac
    rr_system=$(uname -s 2>/dev/null):$(uname -m 2>/dev/null):$rr_bits
    case " $1 " in
        *" $rr_system "*) return 0 ;;
    esac
    [ "${rr_system#::}" != "$rr_system" ]
}

# rr_artifact HASH: sets artifact to the directory with its files, or returns 1. Who has it writes to the file `used`
# beside them, whose time tells the last use.
rr_artifact() {
    artifact=$base/artifacts/$1/c
    [ -d "$artifact" ]
}

# rr_nix_store: sets nix_store to the program, or returns 1. The PATH of a session without a terminal may lack it.
rr_nix_store() {
    nix_store=$(command -v nix-store) && return
    for rr_place in /nix/var/nix/profiles/default/bin "${HOME-}/.nix-profile/bin" /run/current-system/sw/bin \
        "/etc/profiles/per-user/$(id -un)/bin" /usr/local/bin /usr/bin; do
        nix_store=$rr_place/nix-store
        [ -x "$nix_store" ] && return
    done
    return 1
}
