# fish completion for PROGRAM
function __PROGRAM_complete
    set -l typed (commandline -ct)
    set -l words (commandline -opc) "$typed"
    set -l lines ($words[1] __complete $words[2..-1] 2>/dev/null)
    set -l flag (string match -r -- '^-.*?=' "$typed")
    for line in $lines
        string match -q -- ':*' $line; or printf '%s%s\n' "$flag" $line
    end
    # The directive stands alone where nothing was found: then a file can stand there, or a directory, or
    # neither.
    if test (count $lines) -eq 1
        switch "$lines[1]"
            case ":4"
            case ":16"
                __fish_complete_directories "$typed" ""
            case "*"
                __fish_complete_path "$typed"
        end
    end
end
complete -c PROGRAM -f -a '(__PROGRAM_complete)'
