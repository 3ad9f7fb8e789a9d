# What makes a login on a host the agent of a session: finds our directory, and becomes the program there, or takes it.
# For any POSIX sh; docs/protocol.md, section 1, has its variables and answers. It is sent as one compound command, so the
# shell has read all of it before it runs. On a host that has the program nothing but ls and uname is started.

# bash takes options of the login's environment (SHELLOPTS, BASHOPTS), and its read obeys TMOUT.
set +aeuCvx
set -f
[ -z "${BASH_VERSION-}" ] || shopt -u nocasematch failglob nullglob
unset TMOUT CDPATH ENV BASH_ENV
newline='
'
blanks=' 	'
IFS=$blanks$newline
kind=directory why=''

say() { printf '\n%s %s\n' "$nonce" "$*"; }

no() { why="$why$1: $2; "; }

# unmapped UID: whether that is what a user namespace shows of somebody whom it does not know, root for instance.
unmapped() {
    [ "$1" = 65534 ] && [ -r /proc/self/uid_map ] && read -r first second count </proc/self/uid_map &&
        [ "$count" != 4294967295 ]
}

# make DIRECTORY: with all above it that is missing. Where a directory has a default ACL, umask(2) does not count.
make() {
    [ -z "$1" ] || [ -d "$1" ] || { make "${1%/*}" && mkdir -m 700 "$1"; } || [ -d "$1" ]
}

# usable DIRECTORY: ours, 0700, no link, and nobody but root can put another in its place.
usable() {
    case $1 in
        *"$newline"*) no "$1" "a newline in its name"; return 1 ;;
        /*[!/]*) ;;
        *) no "$1" "not an absolute path"; return 1 ;;
    esac
    place=$1
    while [ "${place%/}" != "$place" ]; do place=${place%/}; done
    [ -d "$place" ] || said=$(make "$place" 2>&1) || { no "$place" "$said"; return 1; }
    if [ -h "$place" ] || ! [ -d "$place" ]; then no "$place" "not a directory"; return 1; fi
    # Before anything is done with it: what is somebody else's may be another thing at every look.
    [ -O "$place" ] || { no "$place" "belongs to another user"; return 1; }
    cd -P "${place%/*}/" || { no "$place" "not to be reached"; return 1; }
    set -- "$place/." /
    for above in "$place" "$PWD/"; do
        # By its name, for links on the way, and as it really lies.
        above=${above%/*}
        while [ -n "$above" ]; do
            set -- "$@" "$above"
            above=${above%/*}
        done
    done
    cd /
    said=$(ls -ldn "$@" 2>&1) || { no "$place" "$said"; return 1; }
    mode='' user='' users='' open=''
    IFS=$newline
    for line in $said; do
        IFS=$blanks
        set -- $line
        # A sticky directory (/tmp) lets nobody rename what is another's. A group that has the number of the
        # directory's user is that user's own.
        case $line in
            *" $place/.") mode=$1 user=$3 ;;
            d???????w[!tT]*) open="any user could replace it" ;;
            d????w???[!tT]*) [ "$3" = "$4" ] || open="group $4 could replace it" ;;
        esac
        users="$users $3"
    done
    IFS=$blanks$newline
    for above in $users; do
        [ "$above" = 0 ] || [ "$above" = "$user" ] || unmapped "$above" || open="user $above could replace it"
    done
    case $mode in
        # What lies in it may be anybody's, so taking the permission away now would come too late.
        ?????w* | ????????w*) open="other users may write to it" ;;
        drwx------*) ;;
        d*) [ -n "$open" ] || said=$(chmod 700 "$place" 2>&1) || open=$said ;;
        *) open=$said ;;
    esac
    [ -z "$open" ] || { no "$place" "$open"; return 1; }
}

# starts DIRECTORY: whether programs start there: a home or /tmp may be mounted noexec.
starts() {
    probe=$1/.probe.$$
    if ! said=$( (umask 077; printf '#!/bin/sh\n' >"$probe" && chmod 700 "$probe") 2>&1); then
        kind=room
        no "$1" "$said"
    elif ! "$probe" 2>/dev/null; then
        no "$1" "programs cannot be started there (mounted noexec?)"
    else
        rm -f "$probe"
        return
    fi
    rm -f "$probe"
    return 1
}

become() {
    say start
    cd /
    exec "$program" session "$base" "$nonce" "$session" "$epoch"
    exit 126
}

# take: the program from our standard input, of which nothing follows: head may read more than it writes.
take() {
    bits=$(getconf LONG_BIT 2>/dev/null)
    say need "$sysname" "$machine" "${bits:-0}"
    IFS= read -r size || exit 1
    new=$base/agents/.new-$session
    [ -d "$base/agents" ] || mkdir -m 700 "$base/agents" 2>/dev/null
    if head -c 1 </dev/null >/dev/null 2>&1; then
        said=$( (umask 077; head -c "$size" >"$new") 2>&1)
    else
        said=$( (umask 077; dd bs=1 count="$size" >"$new") 2>&1)
    fi
    if [ "$(wc -c <"$new")" -eq "$size" ] 2>/dev/null && said=$( (chmod 700 "$new" && mv -f "$new" "$program") 2>&1); then
        become
    fi
    rm -f "$new"
    say fault room "$base/agents: ${said:-the program was not written whole}"
    exit 1
}

settle() {
    usable "$1" || return
    base=$place
    program=$base/agents/$agent-$sysname-$machine
    [ -n "$replace" ] || ! [ -x "$program" ] || become
    ! starts "$base" || take
}

set -- $(uname -sm)
sysname=$1
machine=$2
if [ -n "$directory" ]; then
    settle "$directory"
else
    [ -z "${HOME-}" ] || [ "$HOME" = / ] || settle "$HOME/.cache/remote-runner"
    id=$(id -u)
    for parent in /var/tmp /tmp /dev/shm; do
        settle "$parent/remote-runner-$id"
    done
fi
say fault "$kind" "$why"
exit 1
