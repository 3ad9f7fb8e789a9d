# What runs left on a host, and the artifacts there. Behind base.sh, supervisor.sh and nix/user.sh; one of the calls at
# the end stands behind this file. Everything is found by record, never by name.
#
# stdout   MARK run ALIVE SIZE_KIB DIRECTORY, then MARK record KEY=VALUE for each line of its record
#          MARK artifact USED AGE_S SIZE_KIB PLACE, for: a directory of the cache, the root that keeps a path in the
#          host's Nix store, the list of a closure in the user's own store, a path there that no closure names
#          MARK removed|alive|unknown|failed WHICH
#          MARK found DIRECTORY, one tar stream, MARK tar STATUS
#          always first MARK start, and last MARK done

rr_begin() {
    trap '' PIPE
    exec 4>&2 </dev/null 2>/dev/null
    IFS=$rr_blanks
    rr_now=$(date +%s)
    rr_this_boot=
    [ -r /proc/sys/kernel/random/boot_id ] && IFS= read -r rr_this_boot </proc/sys/kernel/random/boot_id
    rr_say start
    rr_say start >&4
}

rr_end() {
    rr_say 'done'
    exit 0
}

# rr_for_each_base COMMAND: runs it in every place of ours that is there, with rr_home set.
rr_for_each_base() {
    if [ -n "$rr_directory" ]; then
        rr_in_base "$rr_directory" "$1"
        return
    fi
    [ -n "${HOME-}" ] && [ "$HOME" != / ] && rr_in_base "$HOME/.cache/remote-runner" "$1"
    rr_uid=$(id -u)
    for rr_place in /var/tmp /tmp /dev/shm; do
        rr_in_base "$rr_place/remote-runner-$rr_uid" "$1"
    done
}

rr_in_base() {
    [ -d "$1" ] && ! [ -h "$1" ] && [ -O "$1" ] || return
    rr_home=$(cd -P "$1" && pwd -P)
    "$2"
}

# rr_look_at_run DIRECTORY: sets rr_run, rr_id and what its record says, and rr_alive to yes or no.
rr_look_at_run() {
    rr_run=$1
    rr_id=${1##*/}
    rr_marker=
    rr_supervisor=
    rr_supervisor_start=
    rr_boot=
    rr_artifact=
    rr_group=
    rr_application=
    [ -r "$rr_run/record" ] && while IFS='=' read -r rr_key rr_value; do
        case $rr_key in
            marker) rr_marker=$rr_value ;;
            supervisor) rr_supervisor=$rr_value ;;
            supervisor_start) rr_supervisor_start=$rr_value ;;
            boot) rr_boot=$rr_value ;;
            artifact) rr_artifact=$rr_value ;;
            application) rr_application=$rr_value ;;
        esac
    done <"$rr_run/record"
    rr_alive=no
    rr_rest=
    # Process numbers say nothing after a restart of the machine.
    [ "$rr_boot" = "$rr_this_boot" ] || return 0
    if [ -n "$rr_supervisor" ] && rr_lives "$rr_supervisor" && rr_start_time "$rr_supervisor" &&
        [ "$rr_start" = "$rr_supervisor_start" ]; then
        rr_alive=yes
        # The group's number can be nobody else's while its supervisor lives.
        rr_group=$rr_application
    else
        rr_supervisor=
    fi
    [ -n "$rr_marker" ] && rr_find_rest
    [ -n "$rr_rest" ] && rr_alive=yes
    return 0
}

# rr_age PLACE...: sets rr_age_s to how long ago the first of them that is there was changed.
rr_age() {
    while [ $# -gt 1 ] && ! [ -e "$1" ]; do
        shift
    done
    rr_changed=$(stat -c %Y "$1" || stat -f %m "$1")
    rr_age_s=$((rr_now - ${rr_changed:-$rr_now}))
}

rr_size_kib() {
    rr_size=$(du -sk "$1")
    set -- $rr_size
    rr_size=${1:-0}
}

# --- runs -------------------------------------------------------------------------------------------------------

rr_list_runs_here() {
    for rr_directory_of_run in "$rr_home"/runs/*; do
        [ -d "$rr_directory_of_run" ] || continue
        rr_look_at_run "$rr_directory_of_run"
        rr_size_kib "$rr_run"
        rr_say run "$rr_alive" "$rr_size" "$rr_run"
        [ -r "$rr_run/record" ] || continue
        # Since its start while it runs, since its end when that was seen.
        rr_age "$rr_run/record"
        rr_say record "age=$rr_age_s"
        while IFS= read -r rr_line; do
            rr_say record "$rr_line"
        done <"$rr_run/record"
    done
}

rr_remove_runs_here() {
    for rr_directory_of_run in "$rr_home"/runs/*; do
        [ -d "$rr_directory_of_run" ] || continue
        case "$rr_ids" in
            '') ;;
            *" ${rr_directory_of_run##*/} "*) ;;
            *) continue ;;
        esac
        rr_seen="$rr_seen${rr_directory_of_run##*/} "
        rr_look_at_run "$rr_directory_of_run"
        rr_age "$rr_run/record" "$rr_run"
        [ -n "$rr_older_s" ] && [ "$rr_age_s" -lt "$rr_older_s" ] && continue
        if [ "$rr_alive" = yes ]; then
            if [ -z "$rr_end_alive" ]; then
                rr_say alive "$rr_run"
                continue
            fi
            rr_end_run
        fi
        if rr_remove "$rr_run"; then
            rr_say removed "$rr_run"
        else
            rr_say failed "$rr_run"
        fi
    done
}

rr_end_run() {
    rr_end_rest
    [ -n "$rr_supervisor" ] || return
    kill -s TERM "$rr_supervisor"
    rr_tries=0
    while rr_lives "$rr_supervisor" && [ "$rr_tries" -lt 30 ]; do
        sleep 0.1 || sleep 1
        rr_tries=$((rr_tries + 1))
    done
    kill -s KILL "$rr_supervisor"
}

rr_fetch_run_here() {
    [ -d "$rr_home/runs/$rr_wanted/outputs" ] && [ -z "$rr_found_run" ] && rr_found_run=$rr_home/runs/$rr_wanted
}

# --- artifacts --------------------------------------------------------------------------------------------------

# The names of what runs: the hash in the cache, or the store path without its directory.
rr_used_here() {
    for rr_directory_of_run in "$rr_home"/runs/*; do
        [ -d "$rr_directory_of_run" ] || continue
        rr_look_at_run "$rr_directory_of_run"
        [ "$rr_alive" = yes ] && [ -n "$rr_artifact" ] && rr_used="$rr_used${rr_artifact##*/} "
    done
}

rr_list_artifacts_here() {
    for rr_directory_of_artifact in "$rr_home"/artifacts/* "$rr_home"/artifacts/.tmp-* "$rr_home"/store/.tmp-*; do
        [ -d "$rr_directory_of_artifact" ] || continue
        rr_size_kib "$rr_directory_of_artifact"
        rr_say_artifact "$rr_directory_of_artifact"
    done
    rr_size=0
    for rr_line in "$rr_home"/nix/roots/*; do
        [ -h "$rr_line" ] && rr_say_artifact "$rr_line"
    done
    rr_store_here=$rr_home/store
    rr_weigh | while read -r rr_key rr_size rr_name; do
        case $rr_key:$rr_name in
            closure:.tmp-*) ;;
            closure:*) rr_say_artifact "$rr_store_here/closures/$rr_name" ;;
            *) rr_say_artifact "$rr_store_here/nix/store/$rr_name" ;;
        esac
    done
}

# rr_say_artifact PLACE: with rr_size.
rr_say_artifact() {
    rr_in_use=no
    case "$rr_used" in
        *" ${1##*/} "*) rr_in_use=yes ;;
    esac
    rr_age "$1/used" "$1"
    rr_say artifact "$rr_in_use" "$rr_age_s" "$rr_size" "$1"
}

rr_remove_artifacts_here() {
    for rr_directory_of_artifact in "$rr_home"/artifacts/* "$rr_home"/artifacts/.tmp-* "$rr_home"/store/.tmp-*; do
        [ -d "$rr_directory_of_artifact" ] && rr_may_go "$rr_directory_of_artifact" || continue
        # Aside first, so that nothing half removed can be started.
        rr_aside=${rr_directory_of_artifact%/*}/.tmp-gone-$$-$rr_name
        mv "$rr_directory_of_artifact" "$rr_aside"
        ! [ -e "$rr_directory_of_artifact" ] && rr_remove "$rr_aside"
        rr_say_gone "$rr_directory_of_artifact" "$rr_aside"
    done
    rr_store_here=$rr_home/store
    rr_asked=
    for rr_line in "$rr_store_here"/nix/store/*; do
        rr_name=${rr_line##*/}
        case "$rr_ids" in
            *" $rr_name "*) [ -f "$rr_store_here/closures/$rr_name" ] || rr_asked="$rr_asked$rr_name " ;;
        esac
    done
    # The host's own garbage collection may take the path then.
    for rr_line in "$rr_home"/nix/roots/*; do
        [ -h "$rr_line" ] && rr_may_go "$rr_line" || continue
        rm "$rr_line"
        rr_say_gone "$rr_line"
    done
    # A run that began since the look had its record before it found its list. So a list goes aside, where it still counts,
    # and its paths go after a second look.
    rr_aside=
    for rr_line in "$rr_store_here"/closures/*; do
        [ -f "$rr_line" ] && rr_may_go "$rr_line" || continue
        mv "$rr_line" "$rr_store_here/closures/.tmp-gone-$rr_name" && rr_aside="$rr_aside$rr_name "
    done
    [ -z "$rr_aside" ] || rr_used_here
    set -f
    for rr_name in $rr_aside; do
        rr_line=$rr_store_here/closures/$rr_name
        case "$rr_used" in
            *" $rr_name "*) mv "$rr_store_here/closures/.tmp-gone-$rr_name" "$rr_line"; rr_say alive "$rr_line"; continue ;;
        esac
        rm "$rr_store_here/closures/.tmp-gone-$rr_name"
        rr_say_gone "$rr_line"
    done
    set +f
    rr_sweep
    set -f
    for rr_name in $rr_asked; do
        rr_seen="$rr_seen$rr_name "
        rr_say_gone "$rr_store_here/nix/store/$rr_name"
    done
    set +f
}

# rr_may_go PLACE: whether it is to be removed and no living run has it; sets rr_name.
rr_may_go() {
    rr_name=${1##*/}
    case "$rr_ids" in
        *" $rr_name "*) ;;
        *) return 1 ;;
    esac
    rr_seen="$rr_seen$rr_name "
    case "$rr_used" in
        *" $rr_name "*) rr_say alive "$1"; return 1 ;;
    esac
}

# rr_say_gone PLACE [ASIDE]
rr_say_gone() {
    if [ -e "$1" ] || [ -h "$1" ] || [ -e "${2-}" ]; then
        rr_say failed "$1"
    else
        rr_say removed "$1"
    fi
}

rr_say_unknown() {
    set -f
    for rr_name in $rr_ids; do
        case "$rr_seen" in
            *" $rr_name "*) ;;
            *) rr_say unknown "$rr_name" ;;
        esac
    done
    set +f
}

# --- the calls --------------------------------------------------------------------------------------------------

rr_list_runs() {
    rr_begin
    rr_for_each_base rr_list_runs_here
    rr_end
}

rr_remove_runs() {
    rr_begin
    rr_seen=' '
    rr_for_each_base rr_remove_runs_here
    rr_say_unknown
    rr_end
}

rr_fetch_run() {
    rr_begin
    rr_found_run=
    rr_for_each_base rr_fetch_run_here
    if [ -z "$rr_found_run" ]; then
        rr_say unknown "$rr_wanted"
        rr_end
    fi
    rr_run=$rr_found_run
    rr_say found "$rr_run"
    rr_send_outputs
    rr_end
}

rr_list_artifacts() {
    rr_begin
    rr_used=' '
    rr_for_each_base rr_used_here
    rr_for_each_base rr_list_artifacts_here
    rr_end
}

rr_remove_artifacts() {
    rr_begin
    rr_used=' '
    rr_seen=' '
    rr_for_each_base rr_used_here
    rr_for_each_base rr_remove_artifacts_here
    rr_say_unknown
    rr_end
}
