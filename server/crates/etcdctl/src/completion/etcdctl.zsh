#compdef etcdctl
# zsh completion for etcdctl
_etcdctl() {
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
    (( ${#found} )) && _describe etcdctl found && return
    (( directive & 4 )) || _files
}
if [ "$funcstack[1]" = "_etcdctl" ]; then
    _etcdctl
else
    compdef _etcdctl etcdctl
fi
