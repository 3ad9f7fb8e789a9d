# Completion of PROGRAM in zsh.
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
_PROGRAM_complete() {
    local -a found open
    found=("${(@f)$(remote-runner _complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -z "$found" ]]; then
        _files
        return
    fi
    open=("${(@M)found:#*=}")
    found=("${(@)found:#*=}")
    (( $#open )) && compadd -S '' -a open
    (( $#found )) && compadd -a found
}
compdef _PROGRAM_complete PROGRAM
