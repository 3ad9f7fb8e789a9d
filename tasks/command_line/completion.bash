# Completion of PROGRAM in bash.
_PROGRAM_complete() {
    local line="${COMP_LINE:0:COMP_POINT}" current cut
    local -a words
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=('')
    current="${words[${#words[@]} - 1]}"
    mapfile -t COMPREPLY < <(remote-runner _complete -- "${words[@]:1}" 2>/dev/null)
    # Readline puts an answer behind the last of its own breaks in the word.
    cut="${current%"${current##*[=:]}"}"
    [[ $cut ]] && COMPREPLY=("${COMPREPLY[@]#"$cut"}")
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
}
complete -o default -F _PROGRAM_complete PROGRAM
