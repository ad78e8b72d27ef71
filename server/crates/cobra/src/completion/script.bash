# bash completion for PROGRAM
_PROGRAM() {
    local index word gap line typed before="" directive=0
    local rest=$COMP_LINE words=() found=()
    COMPREPLY=()
    # Bash also divides words at "=" and ":", which PROGRAM does not.
    for ((index = 0; index <= COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        gap=${rest%%"$word"*}
        rest=${rest#*"$word"}
        if [[ $index -gt 0 && -n $word && -z $gap ]]; then
            words[${#words[@]} - 1]+=$word
        else
            words+=("$word")
        fi
    done
    typed=${words[${#words[@]} - 1]}
    if [[ $typed == -*=* ]]; then
        [[ $COMP_WORDBREAKS == *=* ]] || before=${typed%%=*}=
        typed=${typed#*=}
    fi
    while IFS= read -r line; do
        case $line in
            :*) directive=${line#:} ;;
            *) found+=("${line%%$'\t'*}") ;;
        esac
    done < <("${words[0]/#\~\//$HOME/}" __complete "${words[@]:1}" 2>/dev/null)
    for word in "${found[@]}"; do
        [[ $word == "$typed"* ]] && COMPREPLY+=("$before$word")
    done
    # No file can stand there either, or none but a directory.
    ((directive & 20)) && compopt +o default +o bashdefault 2>/dev/null
    ((directive & 16)) && compopt -o dirnames 2>/dev/null
    return 0
}
complete -o bashdefault -o default -F _PROGRAM PROGRAM
