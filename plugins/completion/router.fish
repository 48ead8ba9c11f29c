# Completion of router in fish:  router completion fish >~/.config/fish/completions/router.fish
function __router_complete
    set -l words (commandline -opc) (commandline -ct)
    # a word - stands for stdin, where it is a - again
    echo - | $words[1] complete -- $words[2..-1] 2>/dev/null
end
complete -c router -f -a '(__router_complete)'
