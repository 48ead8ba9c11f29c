#compdef router
# Completion of router in zsh:  eval "$(router completion zsh)", behind compinit
_router() {
    local -a typed found nouns others
    typed=("${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}")
    # a word - stands for stdin, where it is a - again
    found=("${(@f)$("${words[1]}" complete -- "${typed[@]}" 2>/dev/null <<<-)}")
    found=("${(@)found:#}")
    nouns=("${(@M)found:#*[:\/]}")
    others=("${(@)found:#*[:\/]}")
    # a noun goes on, and so does a directory
    (( ${#nouns} )) && compadd -S '' -- "${nouns[@]}"
    (( ${#others} )) && compadd -- "${others[@]}"
    (( ${#found} ))
}
if [[ $funcstack[1] == _router ]]; then
    _router "$@"
else
    compdef _router router
fi
