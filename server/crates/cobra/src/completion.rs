//! `completion`: scripts that let a shell complete command lines.
//!
//! The scripts know nothing: they ask [`crate::complete`] with the words typed so far, which answers
//! from the same tree of commands that the parser uses. So they stay right when commands change.

use types::go;

use crate::command::one_argument;
use crate::words::Word;

/// What the argument of `completion` can be.
pub const SHELLS: [&str; 4] = ["bash", "zsh", "fish", "powershell"];

/// In the order of the shells, for a program of the name `PROGRAM`.
const SCRIPTS: [&str; 4] = [
    include_str!("completion/script.bash"),
    include_str!("completion/script.zsh"),
    include_str!("completion/script.fish"),
    include_str!("completion/script.ps1"),
];

/// The arguments of `completion`, in cobra's words.
pub fn check(name: &str, arguments: &[Word]) -> Result<(), String> {
    let unknown = |shell: &&Word| !SHELLS.iter().any(|known| shell == known);
    match arguments.first().filter(unknown) {
        Some(shell) if arguments.len() == 1 => {
            Err(format!("invalid argument {} for {name:?}", go::quote(shell)))
        }
        _ => one_argument(name, arguments),
    }
}

/// The script for a shell, which has been checked.
pub fn script(program: &str, shell: &[u8]) -> String {
    let mut known = SHELLS.into_iter().zip(SCRIPTS);
    let found = known.find(|(known, _)| known.as_bytes() == shell);
    found.map_or(String::new(), |(_, script)| script.replace("PROGRAM", program))
}
