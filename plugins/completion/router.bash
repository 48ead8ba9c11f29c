# Completion of router in bash:  eval "$(router completion bash)"
_router() {
    local line=${COMP_LINE:0:COMP_POINT} IFS=$' \t\n' words cur given= breaks
    # bash makes words of its own of the colons in apps:create; these words are what stands between blanks
    read -a words <<<"$line"
    [[ $line == *[[:blank:]] ]] && words+=('')
    cur=${words[${#words[@]} - 1]}
    # a word - stands for stdin, where it is a - again
    mapfile -t COMPREPLY < <("$1" complete -- "${words[@]:1}" 2>/dev/null <<<-)
    # up to the last break the word stands already
    breaks=${COMP_WORDBREAKS//[^:=]/}
    [[ -n $breaks && $cur == *[$breaks]* ]] && given=${cur%"${cur##*[$breaks]}"}
    COMPREPLY=("${COMPREPLY[@]#"$given"}")
    [[ ${#COMPREPLY[@]} -eq 1 && -z ${COMPREPLY[0]} ]] && COMPREPLY=()
    # a noun goes on, and so does a directory
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[:/] ]] && compopt -o nospace 2>/dev/null
    # *.example.com is a name here, and not a pattern
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[*]* ]] && printf -v 'COMPREPLY[0]' %q "${COMPREPLY[0]}"
    return 0
}
complete -F _router router
