# rr_nix_access: sets rr_access to what this login may do with the Nix store here (rr_nix_store came before):
#   root       everything
#   owner      everything: the store is this user's
#   trusted    everything, by the daemon
#   untrusted  by the daemon: build, and add what is signed or addressed by its content
#   refused    nothing: the daemon does not serve them; rr_why says what was said
#   foreign    nothing: the store is somebody else's, and no daemon listens
# Nix goes the same way: to the store itself where it may write, else to the daemon.
rr_nix_access() {
    rr_why=
    rr_state=${NIX_STATE_DIR:-/nix/var/nix}
    if [ "$(id -u)" = 0 ]; then
        rr_access=root
    elif [ "${NIX_REMOTE:-auto}" != daemon ] && [ -w "$rr_state" ] && [ -w /nix/store ]; then
        rr_access=owner
    elif [ -S "${NIX_DAEMON_SOCKET_PATH:-$rr_state/daemon-socket/socket}" ]; then
        # Since 2.15 it says "Trusted: 0". A daemon of before tells whom it does not trust that it ignores the setting.
        if rr_said=$("${nix_store%/*}/nix" --extra-experimental-features nix-command store ping --store daemon --debug --option sandbox true 2>&1); then
            rr_access=trusted
        else
            rr_access=refused
            rr_why=$(printf '%s\n' "$rr_said" | grep '^error' | tail -n 1)
        fi
        case $rr_said in
            *'not a trusted user'*|*'Trusted: 0'*) rr_access=untrusted ;;
        esac
    else
        rr_access=foreign
    fi
}
