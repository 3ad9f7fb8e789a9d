# Runs one instance on a host, from an empty directory to its removal, in one session. POSIX sh; base.sh stands before
# this file, and behind it what job.py writes: first some rr_ variables and the call of rr_prepare, and when it is known
# what shall run the other variables, rr_environment and the call of rr_supervise.
#
# stdin    this script, beat among it; after our first mark, lines: beat, stop, bye keep, bye clean. Its end means that
#          nobody listens any more.
# stdout   MARK start DIRECTORY, the application's bytes, MARK exit STATUS LEFT REASON PROBLEM, one tar stream,
#          MARK tar STATUS, MARK done kept|cleaned
# stderr   MARK start, the application's bytes, MARK exit, what tar says, MARK tar
#
# Processes: this shell, which waits for the application; a listener, which reads stdin; a timer, which alone decides
# that nobody listens and alone ends the application. The application runs in a process group of its own.

rr_say() {
    printf '%s%s\n' "$rr_mark" "$*"
}

rr_fault() {
    rr_say fault "$@"
    exit 3
}

# Comes first. Until rr_supervise is called, sh itself reads what comes: more of this script, or beat.
rr_prepare() {
    # Ignored, not trapped: then they also do nothing while a subshell sets up its own traps.
    trap '' PIPE HUP USR1 USR2
    exec 4>&2 2>/dev/null
    rr_base "$rr_directory" || rr_fault directory "$rr_why"
    cd -P "$base" && rr_home=$PWD && cd /
    rr_run=$rr_home/runs/$rr_id
    rr_find_grouping
    rr_timer_loop </dev/null &
    rr_timer=$!
    trap 'kill "$rr_timer"' EXIT
}

beat() {
    kill -s USR1 "$rr_timer"
}

rr_supervise() {
    exec 3<&0 </dev/null
    beat # the job is one: nobody may have spoken for the session while it waited, and that counts against no run
    rr_make_run
    rr_find_program "$1"
    shift
    [ -z "$rr_ports" ] || rr_check_ports
    rr_listen &
    rr_listener=$!
    exec 3<&-
    trap 'rr_give_up' TERM

    [ -d /proc/self ] && read -r rr_began rr_line </proc/uptime
    rr_say start "$rr_run"
    rr_say start >&4
    if [ "$rr_grouping" = monitor ]; then
        set -m
        rr_launch "$rr_program" "$@" &
        rr_group=$!
        set +m
        printf 'application=%s\n' "$rr_group" >>"$rr_run/record"
        while :; do
            wait "$rr_group"
            rr_status=$?
            kill -0 "$rr_group" || break
        done
    else
        # In the foreground: what dash and busybox start with & has SIGINT and SIGQUIT ignored for ever.
        (rr_launch "$rr_program" "$@")
        rr_status=$?
        rr_recorded application
        rr_group=$rr_value
    fi
    rr_end_rest
    rr_reason=ended
    [ -s "$rr_run/reason" ] && IFS= read -r rr_reason <"$rr_run/reason"
    rr_problem=
    if [ "$rr_store$rr_reason" = userended ] && ! rr_recorded entered; then
        rr_problem="namespace:$(tail -n 3 "$rr_run/record.said" | tr '\n' ' ')"
        # What was found when it was pushed does not hold any more; the next push tries again.
        rm "$rr_home/store/how.$(uname -n)"
    else
        case $rr_status in
            126|127) rr_explain_start ;;
        esac
    fi
    printf 'exit=%s\n' "$rr_status" >>"$rr_run/record"
    rr_say exit >&4
    rr_say exit "$rr_status" "$rr_left" "$rr_reason" "$rr_problem"
    rr_kept=kept
    if [ "$rr_reason" != lost ] && [ -z "$rr_lost" ]; then
        rr_send_outputs
        wait "$rr_listener"
        [ $? = 10 ] && rr_remove "$rr_run" && rr_kept=cleaned
    fi
    trap '' TERM
    trap - EXIT
    kill "$rr_timer" "$rr_listener"
    wait "$rr_timer" "$rr_listener"
    rr_say 'done' "$rr_kept"
    exit 0
}

# The timer sends TERM when the controller is lost, so that nothing here waits for it.
rr_give_up() {
    rr_lost=1
    [ -n "$rr_tar" ] && kill "$rr_tar"
    kill "$rr_listener"
}

# --- before -----------------------------------------------------------------------------------------------------

rr_make_run() {
    [ -e "$rr_run" ] && rr_fault exists "$rr_run"
    [ -d "$rr_home/runs" ] || mkdir -p "$rr_home/runs"
    # The directories' names are public in TEST_OUTPUTS_PATH; that the base is 0700 protects them.
    rr_said=$(mkdir "$rr_run" "$rr_run/outputs" "$rr_run/tmp" 2>&1) || rr_no_room "$rr_said"
    rr_start_time $$
    rr_boot=
    [ -r /proc/sys/kernel/random/boot_id ] && IFS= read -r rr_boot </proc/sys/kernel/random/boot_id
    printf '%s\nsupervisor=%s\nsupervisor_start=%s\nboot=%s\nmarker=%s\n' \
        "$rr_record" $$ "$rr_start" "$rr_boot" "$rr_marker" >"$rr_run/record" && return
    # Only cat says in every shell what the reason was.
    rr_said=$( { printf '%s\n' "$rr_record" | cat >"$rr_run/record"; } 2>&1)
    rr_no_room "$rr_said"
}

rr_no_room() {
    rm -rf "$rr_run"
    rr_fault room "$rr_run: $1"
}

# rr_start_time PID: sets rr_start to when that process began, in whatever unit the system has ("" if there is none).
rr_start_time() {
    rr_start=
    if [ -d /proc/self ]; then
        [ -r "/proc/$1/stat" ] || return 1
        IFS= read -r rr_line <"/proc/$1/stat" || return 1
        set -f
        # The second field is the name in parentheses, which may hold anything.
        set -- ${rr_line##*) }
        set +f
        rr_start=${20}
    else
        rr_start=$(ps -o lstart= -p "$1")
    fi
}

# rr_recorded KEY: sets rr_value to what the run's record says of it ("" for nothing), or returns 1.
rr_recorded() {
    while IFS='=' read -r rr_key rr_value; do
        [ "$rr_key" = "$1" ] && return
    done <"$rr_run/record"
    rr_value=
    return 1
}

# rr_find_program NAME: sets rr_program to what will be started, or says what is wrong with it.
rr_find_program() {
    case $rr_store in
        cache)
            rr_artifact "$rr_artifact" || rr_missing
            rr_program=$rr_home/artifacts/$rr_artifact/c/$1
            ;;
        nix)
            rr_root_artifact
            rr_program=$rr_artifact/$1
            ;;
        user)
            rr_find_in_user_store "$rr_artifact" "$1" || rr_missing
            ;;
        *)
            rr_program=$1
            case $1 in
                */*) ;;
                *) rr_search_path "$1" ;;
            esac
            ;;
    esac
    rr_see "$rr_program"
    rr_file=$rr_found
    rr_kind=
    if [ -d "$rr_file" ]; then
        rr_kind=directory
    elif ! [ -e "$rr_file" ]; then
        rr_kind=nothing
    elif ! [ -x "$rr_file" ]; then
        rr_kind=not-executable
    elif [ "$rr_store" = cache ]; then
        rr_check_format_once "$1"
    else
        rr_check_format
    fi
    [ -z "$rr_kind" ] && return
    rm -rf "$rr_run"
    rr_fault program "$rr_kind" "$rr_program"
}

# rr_see PATH: sets rr_found to where from here that is which the program finds at PATH.
rr_see() {
    rr_found=$1
    [ "$rr_store" != user ] || rr_look_up "$1"
}

# rr_missing WORDS: says that the artifact has to be pushed again.
rr_missing() {
    rm -rf "$rr_run"
    rr_fault missing "$rr_artifact" "$@"
}

# Holds the artifact in the host's Nix store while the run's directory is there. Only a valid path gets the root;
# nothing is fetched or built for that.
rr_root_artifact() {
    rr_nix_store || rr_missing "there is no nix-store"
    rr_said=$("$nix_store" --option substitute false --add-root "$rr_run/gcroot" -r "$rr_artifact" 2>&1) ||
        rr_missing "$(printf '%s' "$rr_said" | tr '\n' ' ')"
    # Used now, says the root of the push to fab clean; not every touch(1) can.
    touch -h "$rr_home/nix/roots/${rr_artifact##*/}"
}

rr_search_path() {
    rr_ifs=$IFS
    IFS=:
    for rr_place in $PATH; do
        if [ -f "$rr_place/$1" ] && [ -x "$rr_place/$1" ]; then
            rr_program=$rr_place/$1
            break
        fi
    done
    IFS=$rr_ifs
}

# What is in the cache stays as it is, so it is looked at once on each machine and after each of its starts.
rr_check_format_once() {
    rr_used=$rr_home/artifacts/$rr_artifact/used
    rr_line=
    [ -r "$rr_used" ] && IFS= read -r rr_line <"$rr_used"
    [ -n "$rr_boot" ] && [ "$rr_line" = "$rr_boot $1" ] || rr_check_format
    [ -n "$rr_kind" ] || printf '%s\n' "$rr_boot $1" >"$rr_used"
}

# A binary for another machine must not reach exec: where the kernel refuses it, dash, env(1) and setsid(1) go on to
# run it as a shell script.
rr_check_format() {
    rr_header "$rr_file"
    case $rr_head in
        7f454c46*) ;;
        cffaedfe*|cefaedfe*|cafebabe*) [ -d /proc/self ] && rr_kind=format:mach-o; return ;;
        *) return ;;
    esac
    rr_theirs=$rr_machine
    rr_header /bin/sh
    case $rr_head in
        7f454c46*) ;;
        *) rr_kind=format:elf-$rr_theirs; return ;;
    esac
    case $rr_theirs:$rr_machine in
        "$rr_machine:$rr_theirs"|0300:3e00|2800:b700) return ;;
    esac
    # An emulator that the kernel knows (binfmt_misc) has a magic with this machine's number at bytes 18 and 19.
    LC_ALL=C grep -q "^magic 7f454c46[0-9a-f]\{28\}$rr_theirs" /proc/sys/fs/binfmt_misc/* 2>/dev/null && return
    rr_kind=format:elf-$rr_theirs
}

rr_header() {
    set -f
    set -- $(od -An -v -tx1 -N20 "$1" 2>/dev/null)
    set +f
    rr_head=$1$2$3$4
    rr_machine=${19}${20}
}

# sshd with GatewayPorts yes listens on all addresses, whatever it is asked for, and tells nobody who could read it.
rr_check_ports() {
    if [ -d /proc/self ]; then
        LC_ALL=C grep -q -E ": 0+:($rr_ports) 0+:0000 0A " /proc/net/tcp /proc/net/tcp6 || return 0
    else
        netstat -an -p tcp | grep -q -E "\*[.]($rr_ports_decimal) .*LISTEN" || return 0
    fi
    rm -rf "$rr_run"
    rr_fault exposed
}

rr_find_grouping() {
    # bash and ksh make a group per job; dash and busybox refuse without a terminal and need setsid(1).
    if [ -n "${BASH_VERSION-}${KSH_VERSION-}" ]; then
        rr_grouping=monitor
        return
    fi
    rr_program=
    rr_search_path setsid
    rr_setsid=$rr_program
    rr_grouping=setsid
    [ -n "$rr_setsid" ] || rr_fault tool setsid
}

# --- the application --------------------------------------------------------------------------------------------

# Runs in a subshell of its own, of which it becomes the application.
rr_launch() {
    # Here and not at the call: there it would also be this shell's, which says Killed and the like.
    exec 2>&4 4>&-
    trap - PIPE HUP USR1 USR2 TERM
    [ -z "$rr_special" ] || eval "set -- $rr_special \"\$@\""
    if [ "$rr_grouping" = monitor ]; then
        # bash exports _ and counts SHLVL down, whatever one unsets.
        [ -x /usr/bin/env ] && set -- /usr/bin/env -u _ -u SHLVL -u SHELLOPTS -u BASHOPTS "$@"
    elif [ -n "$rr_special" ]; then
        set -- /usr/bin/env "$@"
    fi
    if [ "$rr_store" = user ]; then
        rr_namespace "$rr_how"
        set -- "$rr_unshare" $rr_flags $rr_sh -c "$rr_enter" "$rr_run/record" "$rr_home/store" "$rr_run/tmp" \
            "$rr_tools" "$rr_unshare" "$rr_ids" "$@"
    fi
    if [ "$rr_grouping" = setsid ]; then
        # This subshell's number, which is the application's and its group's as soon as setsid has made that.
        read -r rr_line rr_key </proc/self/stat
        printf 'application=%s\n' "$rr_line" >>"$rr_run/record"
        set -- "$rr_setsid" "$@"
    fi
    cd "$rr_run/tmp" || exit 126
    rr_host=
    if [ -z "$rr_set_hostname" ]; then
        :
    elif [ -r /proc/sys/kernel/hostname ]; then
        IFS= read -r rr_host </proc/sys/kernel/hostname
    else
        rr_host=$(uname -n)
    fi
    rr_forget_inherited
    export TEST_OUTPUTS_PATH="$rr_run/outputs" TEST_TEMP_PATH="$rr_run/tmp" REMOTE_RUNNER_INSTANCE="$rr_marker"
    [ -z "$rr_set_tmpdir" ] || export TMPDIR="$rr_run/tmp"
    [ -z "$rr_set_hostname" ] || export HOSTNAME="$rr_host"
    # Some shells complain here, about a locale that is not installed for instance; the application did not say that.
    { rr_environment; } 2>/dev/null
    unset PWD OLDPWD
    [ "$rr_store" != user ] || exec "$@" 9>&2 2>"$rr_run/record.said"
    exec "$@"
}

rr_forget_inherited() {
    set -f
    IFS=$rr_newline
    for rr_line in $(export -p); do
        case $rr_line in
            'export '*) rr_name=${rr_line#export } ;;
            'declare -x '*) rr_name=${rr_line#declare -x } ;;
            'declare -fx '*) unset -f "${rr_line#declare -fx }"; continue ;;
            *) continue ;;
        esac
        rr_name=${rr_name%%=*}
        case $rr_name in
            ''|*[!A-Za-z0-9_]*|rr_*) continue ;;
        esac
        case " $rr_keep " in
            *" $rr_name "*) continue ;;
        esac
        command unset "$rr_name" 2>/dev/null
    done
    if [ -n "${BASH_VERSION-}" ]; then
        for rr_line in $(declare -Fx); do
            unset -f "${rr_line##* }"
        done
    fi
    set +f
    IFS=' '
}

# 126 and 127 come from the application too; so look whether something is missing that it needs to start.
rr_explain_start() {
    rr_header "$rr_file"
    case $rr_head in
        2321*)
            IFS= read -r rr_line <"$rr_file"
            rr_line=${rr_line#'#!'}
            set -f
            IFS=' '
            set -- $rr_line
            set +f
            rr_see "$1"
            [ -x "$rr_found" ] || rr_problem="interpreter:$1"
            ;;
        7f454c46*)
            rr_line=$(dd if="$rr_file" bs=4096 count=1 2>/dev/null | LC_ALL=C tr '\0' '\n' |
                LC_ALL=C sed -n '/^\/[ -~]*ld[-.a-zA-Z0-9_]*so[.0-9]*$/p' | head -n 1)
            rr_see "$rr_line"
            [ -z "$rr_line" ] || [ -e "$rr_found" ] || rr_problem="interpreter:$rr_line"
            ;;
    esac
}

# --- ending it --------------------------------------------------------------------------------------------------

# rr_nap SECONDS [while]: sleeps; with "while", an end that was decided meanwhile is not waited out.
rr_nap() {
    sleep "$1" &
    while :; do
        wait "$!"
        [ -n "$2" ] && [ -n "$rr_ending" ] && break
        kill -0 "$!" || return 0
    done
    kill "$!"
}

rr_timer_loop() {
    # By exec: a redirection at the call would leave copies open, and the session's streams with them.
    exec >/dev/null 3<&- 4>&-
    trap 'trap - EXIT; [ "$!" = "$rr_first" ] || kill "$!"; exit 0' TERM
    trap rr_cannot_fork EXIT
    rr_first=${!-}
    trap 'rr_alive=1' USR1
    trap 'rr_ending=stop' USR2
    trap 'rr_ending=lost' HUP
    rr_ending=
    rr_stopped=
    rr_missed=0
    rr_pause_s=$(((rr_tolerate_s + 3) / 4))
    rr_alive=
    while :; do
        rr_nap "$rr_pause_s" while
        [ -n "$rr_alive" ] && rr_missed=0 || rr_missed=$((rr_missed + 1))
        rr_alive=
        rr_lives $$ || rr_ending=lost
        # Before there is a job nothing can be lost by waiting.
        [ "$rr_missed" -ge 4 ] && { rr_has_job || [ $((rr_missed * rr_pause_s)) -ge "$rr_wait_s" ]; } && rr_ending=lost
        case $rr_ending in
            stop)
                rr_ending=
                [ -n "$rr_stopped" ] && continue
                rr_stopped=1
                rr_missed=0
                rr_end_group stop
                rr_ending=
                ;;
            lost)
                trap '' HUP USR1 USR2
                # No job has come: nothing is to be ended but who waits for it.
                rr_has_job || { kill -s KILL $$; trap - EXIT; exit 0; }
                rr_end_group lost
                rr_lives $$ || { rr_end_rest; trap - EXIT; exit 0; }
                # The supervisor leaves by itself now, unless it waits for a word or hangs in a write that nobody reads.
                rr_recorded exit || rr_nap $((2 * rr_grace_s + 5))
                kill -s TERM $$
                rr_nap 5
                kill -s KILL $$
                trap - EXIT
                exit 0
                ;;
        esac
    done
}

# Whether the run is ours: another session of the same instance may have made it, while ours waited.
rr_has_job() {
    rr_recorded supervisor && [ "$rr_value" = $$ ]
}

# A shell that cannot start a process (sleep, for the next look) ends on the spot, and nobody would watch any more. What
# is done here takes none: the application has taken them all, most likely.
rr_cannot_fork() {
    rr_has_job || { kill -s KILL $$; return; }
    [ -s "$rr_run/reason" ] || printf '%s\n' processes >"$rr_run/reason"
    rr_recorded application || return
    rr_group=$rr_value
    rr_kill_group KILL
}

# kill -0 also finds a process that has ended and was not asked for by its parent.
rr_lives() {
    kill -0 "$1" || return 1
    if [ -d /proc/self ]; then
        IFS= read -r rr_line <"/proc/$1/stat" || return 1
        case ${rr_line##*) } in
            Z*) return 1 ;;
        esac
    else
        case $(ps -o stat= -p "$1") in
            Z*) return 1 ;;
        esac
    fi
}

rr_end_group() {
    [ -s "$rr_run/reason" ] || printf '%s\n' "$1" >"$rr_run/reason"
    rr_tries=0
    while ! rr_recorded application && [ "$rr_tries" -lt 5 ]; do
        rr_nap 1
        rr_tries=$((rr_tries + 1))
    done
    rr_group=$rr_value
    [ -n "$rr_group" ] || return
    rr_recorded exit && return
    rr_kill_group TERM
    rr_nap "$rr_grace_s"
    rr_recorded exit || rr_kill_group KILL
}

# rr_kill_group SIGNAL: a moment after the application's number was recorded there is no group of that number yet.
rr_kill_group() {
    kill -s "$1" -- "-$rr_group" || kill -s "$1" "$rr_group"
}

rr_listen() {
    exec <&3 3<&- >/dev/null 4>&-
    while IFS= read -r rr_line; do
        case $rr_line in
            beat) beat ;;
            stop) kill -s USR2 "$rr_timer" ;;
            'bye clean') exit 10 ;;
            'bye keep') exit 11 ;;
        esac
    done
    trap 'kill "$!"; exit 12' TERM
    while kill -s HUP "$rr_timer"; do
        sleep 1 &
        wait "$!"
    done
    exit 12
}

# What is left of the instance when its main process has ended: rr_left says how many processes that were.
rr_end_rest() {
    rr_left=0
    rr_find_rest
    [ -z "$rr_rest" ] && return
    set -- $rr_rest
    rr_left=$#
    kill -s TERM $rr_rest
    rr_told="$rr_rest "
    rr_tries=0
    while [ "$rr_tries" -lt $((rr_grace_s * 10)) ]; do
        sleep 0.1 || { sleep 1; rr_tries=$((rr_tries + 9)); }
        rr_tries=$((rr_tries + 1))
        rr_find_rest
        [ -z "$rr_rest" ] && return
        # Also those that were just being started: else they would wait out the grace time for their KILL.
        for rr_pid in $rr_rest; do
            case $rr_told in
                *" $rr_pid "*) ;;
                *) kill -s TERM "$rr_pid"; rr_told="$rr_told$rr_pid " ;;
            esac
        done
    done
    rr_tries=0
    while [ -n "$rr_rest" ] && [ "$rr_tries" -lt 20 ]; do
        kill -s KILL $rr_rest
        sleep 0.1 || sleep 1
        rr_tries=$((rr_tries + 1))
        rr_find_rest
    done
}

# rr_find_rest: sets rr_rest to the pids in the group or with the marker variable (zombies have neither).
rr_find_rest() {
    rr_rest=
    IFS=$rr_blanks
    if [ -d /proc/self ]; then
        rr_list_environments
        # Without -z busybox looks no further than the first variable.
        rr_found=$(LC_ALL=C grep -l -z -F -e "REMOTE_RUNNER_INSTANCE=$rr_marker" $rr_environments)
        for rr_line in $rr_found; do
            rr_line=${rr_line#/proc/}
            rr_rest="$rr_rest ${rr_line%/environ}"
        done
    else
        rr_rest=$(ps -A -E -ww -o pid= -o command= | while read -r rr_pid rr_line; do
            case $rr_line in *"REMOTE_RUNNER_INSTANCE=$rr_marker"*) printf ' %s' "$rr_pid" ;; esac
        done)
    fi
    [ -n "$rr_group" ] && kill -0 -- "-$rr_group" || return 0
    for rr_pid in $(rr_group_members); do
        case "$rr_rest " in
            *" $rr_pid "*) ;;
            *) rr_rest="$rr_rest $rr_pid" ;;
        esac
    done
}

# rr_list_environments: sets rr_environments to the files in /proc where a process of this run may be found. That is
# 10 us for each, so after a run of a second those are left out that are older than we are. Numbers grow, and begin again
# at the top: the last one tells whether they have, unless they came past ours a second time. So soon they do not: that
# takes 32,768 new processes at least.
rr_list_environments() {
    rr_environments='/proc/[0-9]*/environ'
    [ -n "$rr_began" ] && read -r rr_now rr_line </proc/uptime && [ $((${rr_now%.*} - ${rr_began%.*})) -lt 2 ] &&
        read -r rr_line rr_line rr_line rr_line rr_last </proc/loadavg && [ "$rr_last" -gt $$ ] || return 0
    rr_environments=
    for rr_line in /proc/[0-9]*; do
        [ "${rr_line#/proc/}" -gt $$ ] && rr_environments="$rr_environments $rr_line/environ"
    done
}

rr_group_members() {
    if [ -d /proc/self ]; then
        cat /proc/[0-9]*/stat | while IFS= read -r rr_line; do
            rr_pid=${rr_line%% *}
            set -- ${rr_line##*) }
            [ "$3" = "$rr_group" ] && [ "$1" != Z ] && [ "$1" != X ] && printf '%s\n' "$rr_pid"
        done
    else
        ps -A -o pid= -o pgid= -o stat= | while read -r rr_pid rr_line rr_key; do
            case $rr_line:$rr_key in "$rr_group":Z*) ;; "$rr_group":*) printf '%s\n' "$rr_pid" ;; esac
        done
    fi
}

# rr_remove DIRECTORY: also where directories in it are read-only.
rr_remove() {
    rm -rf "$1" || { chmod -R u+rwx "$1"; rm -rf "$1"; }
    ! [ -e "$1" ]
}

# --- after ------------------------------------------------------------------------------------------------------

rr_send_outputs() {
    rr_status=0
    if rr_has_entries "$rr_run/outputs"; then
        rr_tar_format
        (cd "$rr_run/outputs" && exec tar $rr_format -cf - . 2>&4 4>&-) &
        rr_tar=$!
        wait "$rr_tar"
        rr_status=$?
        rr_tar=
    fi
    rr_say tar >&4
    rr_say tar "$rr_status"
}

rr_has_entries() {
    for rr_line in "$1"/* "$1"/.[!.]* "$1"/..?*; do
        if [ -e "$rr_line" ] || [ -h "$rr_line" ]; then
            return 0
        fi
    done
    return 1
}

rr_tar_format() {
    rr_format=
    [ -d /proc/self ] && return
    # macOS: no ._ files for attributes, and a format in which sparse files are plain ones.
    export COPYFILE_DISABLE=1
    rr_format='--format gnutar'
}
