# fish completion for etcdctl
function __etcdctl_complete
    set -l typed (commandline -ct)
    set -l words (commandline -opc) "$typed"
    set -l lines ($words[1] __complete $words[2..-1] 2>/dev/null)
    set -l flag (string match -r -- '^-.*?=' "$typed")
    for line in $lines
        string match -q -- ':*' $line; or printf '%s%s\n' "$flag" $line
    end
    # The directive stands alone: nothing was found. It does not forbid files unless it has the bit 4.
    if test (count $lines) -eq 1; and test "$lines[1]" != ":4"
        __fish_complete_path "$typed"
    end
end
complete -c etcdctl -f -a '(__etcdctl_complete)'
