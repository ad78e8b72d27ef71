//! Help and usage texts in the shape that cobra gives them.

use crate::command::{Command, Found};
use crate::flags::{Flag, HELP, HELP_FLAG, Kind};

/// Column width of names in lists of commands.
const NAME_WIDTH: usize = 11;

/// What `--help` prints.
pub(crate) fn help<R>(found: &Found<'_, R>) -> String {
    let command = found.command();
    let about = if command.long.is_empty() { command.short } else { command.long };
    let hint = match found.path[0] {
        Command { name, options: Some(options), .. } => format!(
            "Use \"{name} {options}\" for a list of global command-line options (applies to all commands).\n"
        ),
        _ => String::new(),
    };
    format!("{}\n\n{}{hint}", about.trim_end(), usage(found))
}

/// What follows an error about flags.
pub(crate) fn usage<R>(found: &Found<'_, R>) -> String {
    let command = found.command();
    let name = found.full_name();
    let mut text = String::from("Usage:");
    if command.run.is_some() || command.name == HELP {
        let space = if command.usage.is_empty() { "" } else { " " };
        // What has to be one of a few words is shown as nothing but these.
        let flags = if command.first_arguments.is_empty() { " [flags]" } else { "" };
        text.push_str(&format!("\n  {name}{space}{}{flags}", command.usage));
    }
    let parent = !command.children.is_empty();
    if parent {
        text.push_str(&format!("\n  {name} [command]"));
        text.push_str(&children(command));
    }
    let mut local = command.flags.clone();
    local.extend(command.persistent.iter().copied());
    let hides = found.path[0].options.is_some();
    if found.path.len() > 1 || !hides {
        let help = match command.name {
            "" => String::new(),
            name => format!("help for {name}"),
        };
        text.push_str(&format!("\n\nFlags:\n{}", flag_list(&local, Some(&help)).trim_end()));
    }
    let inherited: Vec<Flag> = found.path[..found.path.len() - 1]
        .iter()
        .skip(usize::from(hides))
        .flat_map(|command| command.persistent.iter().copied())
        .collect();
    if !inherited.is_empty() {
        let list = flag_list(&inherited, None);
        text.push_str(&format!("\n\nGlobal Flags:\n{}", list.trim_end()));
    }
    if parent {
        text.push_str(&format!(
            "\n\nUse \"{name} [command] --help\" for more information about a command."
        ));
    }
    text.push('\n');
    text
}

fn children<R>(command: &Command<R>) -> String {
    let mut children: Vec<&Command<R>> = command.children.iter().collect();
    children.sort_by_key(|child| child.name);
    let line = |child: &Command<R>| format!("\n  {:NAME_WIDTH$} {}", child.name, child.short);
    if command.groups.is_empty() {
        let lines: String = children.into_iter().map(line).collect();
        return format!("\n\nAvailable Commands:{lines}");
    }
    let mut text = String::new();
    for group in command.groups {
        let lines: String = children
            .iter()
            .filter(|child| child.group == *group)
            .map(|child| line(child))
            .collect();
        if !lines.is_empty() {
            text.push_str(&format!("\n\n{group}{lines}"));
        }
    }
    text
}

/// The lines of a list of flags, sorted by name, descriptions in one column.
pub fn flag_list(flags: &[Flag], help: Option<&str>) -> String {
    let mut flags = flags.to_vec();
    if help.is_some() {
        flags.push(HELP_FLAG);
    }
    flags.sort_by_key(|flag| flag.name);
    let left = |flag: &Flag| {
        let short = flag.short.map_or("    ".to_owned(), |short| format!("-{short}, "));
        let kind = match flag.kind {
            Kind::Bool => "",
            Kind::Text => " string",
            Kind::List => " strings",
            Kind::Integer => " int",
            Kind::Unsigned => " uint",
            Kind::Duration => " duration",
        };
        format!("  {short}--{}{kind}", flag.name)
    };
    let width = flags.iter().map(|flag| left(flag).len()).max().unwrap_or(0);
    let mut text = String::new();
    for flag in &flags {
        let description = match help {
            Some(help) if flag.name == HELP => help,
            _ => flag.help,
        };
        let default = match (flag.kind, flag.default) {
            (_, "") | (Kind::Integer | Kind::Unsigned, "0") | (Kind::Bool, "false") => {
                String::new()
            }
            (Kind::Text, default) => format!(" (default {default:?})"),
            (Kind::List, default) => format!(" (default [{default}])"),
            (_, default) => format!(" (default {default})"),
        };
        text.push_str(&format!("{:width$}   {description}{default}\n", left(flag)));
    }
    text
}
