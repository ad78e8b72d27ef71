#compdef PROGRAM
# zsh completion for PROGRAM
_PROGRAM() {
    local line directive=0
    local -a found
    while IFS= read -r line; do
        case $line in
            :*) directive=${line#:} ;;
            *$'\t'*) found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}") ;;
            *) found+=("${line//:/\\:}") ;;
        esac
    done < <("${~${(Q)words[1]}}" __complete "${(@Q)words[2,CURRENT]}" 2>/dev/null)
    # Of --flag=value only the value is completed.
    [[ $PREFIX == -*=* ]] && compset -P 1 '*='
    (( ${#found} )) && _describe PROGRAM found && return
    (( directive & 4 )) && return
    if (( directive & 16 )); then _files -/; else _files; fi
}
if [ "$funcstack[1]" = "_PROGRAM" ]; then
    _PROGRAM
else
    compdef _PROGRAM PROGRAM
fi
