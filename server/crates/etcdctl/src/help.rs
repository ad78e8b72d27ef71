//! Help and usage texts in the shape that cobra gives them.

use crate::command_line::{Command, Found, Group};
use crate::flags::{Flag, HELP, HELP_FLAG, Kind};

/// Headings in the order of the root's help.
const GROUPS: [(Group, &str); 5] = [
    (Group::KeyValue, "Key-value commands"),
    (Group::Maintenance, "Cluster maintenance commands"),
    (Group::Concurrency, "Concurrency commands"),
    (Group::Authentication, "Authentication commands"),
    (Group::Utility, "Utility commands"),
];

/// Column width of names in lists of commands.
const NAME_WIDTH: usize = 11;

/// What `--help` prints.
pub(crate) fn help(found: &Found<'_>) -> String {
    let command = found.command();
    let about = if command.long.is_empty() { command.short } else { command.long };
    format!("{}\n\n{}{OPTIONS_HINT}", about.trim_end(), usage(found))
}

const OPTIONS_HINT: &str = "Use \"etcdctl options\" for a list of global command-line options \
                            (applies to all commands).\n";

/// What follows an error about flags.
pub(crate) fn usage(found: &Found<'_>) -> String {
    let command = found.command();
    let name = found.full_name();
    let mut text = String::from("Usage:");
    if command.run.is_some() {
        let space = if command.usage.is_empty() { "" } else { " " };
        // What has to be one of a few words is shown as nothing but these.
        let flags = if command.check.is_some() { "" } else { " [flags]" };
        text.push_str(&format!("\n  {name}{space}{}{flags}", command.usage));
    }
    let parent = !command.children.is_empty();
    if parent {
        text.push_str(&format!("\n  {name} [command]"));
        text.push_str(&children(command));
    }
    let mut local = command.flags.clone();
    local.extend(command.persistent.iter().copied());
    // The root hides its flags: `options` lists them.
    if found.path.len() > 1 {
        let help = match command.name {
            "" => String::new(),
            name => format!("help for {name}"),
        };
        text.push_str(&format!("\n\nFlags:\n{}", flag_list(&local, Some(&help)).trim_end()));
    }
    // What the root passes down is hidden too.
    let inherited: Vec<Flag> = found.path[1..found.path.len().max(2) - 1]
        .iter()
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

fn children(command: &Command) -> String {
    let mut children: Vec<&Command> = command.children.iter().collect();
    children.sort_by_key(|child| child.name);
    let line = |child: &Command| format!("\n  {:NAME_WIDTH$} {}", child.name, child.short);
    if children.iter().all(|child| child.group.is_none()) {
        let lines: String = children.into_iter().map(line).collect();
        return format!("\n\nAvailable Commands:{lines}");
    }
    let mut text = String::new();
    for (group, title) in GROUPS {
        let lines: String = children
            .iter()
            .filter(|child| child.group == Some(group))
            .map(|child| line(child))
            .collect();
        if !lines.is_empty() {
            text.push_str(&format!("\n\n{title}{lines}"));
        }
    }
    text
}

/// The lines of a list of flags, sorted by name, descriptions in one column.
pub(crate) fn flag_list(flags: &[Flag], help: Option<&str>) -> String {
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
            (_, "") | (Kind::Integer, "0") | (Kind::Bool, "false") => String::new(),
            (Kind::Text, default) => format!(" (default {default:?})"),
            (Kind::List, default) => format!(" (default [{default}])"),
            (_, default) => format!(" (default {default})"),
        };
        text.push_str(&format!("{:width$}   {description}{default}\n", left(flag)));
    }
    text
}
