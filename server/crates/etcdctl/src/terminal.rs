//! Passwords, asked for as Go etcdctl asks: the prompt on standard output, the answer from standard
//! input, not shown if that is a terminal. Scripts pipe their answers in.

use std::io::{IsTerminal as _, Write as _};

use cobra::{Exit, Outcome, exit};
use rustix::io::{read, retry_on_intr};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// Asks for a password.
pub(crate) fn ask_password(prompt: &str) -> std::io::Result<String> {
    let mut out = std::io::stdout();
    out.write_all(prompt.as_bytes())?;
    out.flush()?;
    let hidden = Hidden::begin()?;
    let line = read_line();
    drop(hidden);
    out.write_all(b"\n")?;
    let line = line?;
    Ok(line.strip_suffix('\r').unwrap_or(&line).to_owned())
}

/// Asks for a new password, twice.
pub(crate) fn ask_new_password(user: &str) -> Outcome<String> {
    let failed =
        |error: std::io::Error| Exit::bad_arguments(format!("failed to ask password: {error}"));
    let first = ask_password(&format!("Password of {user}: ")).map_err(failed)?;
    if first.is_empty() {
        return Err(Exit::bad_arguments("empty password"));
    }
    let prompt = format!("Type password of {user} again for confirmation: ");
    if ask_password(&prompt).map_err(failed)? != first {
        return Err(Exit::bad_arguments("given passwords are different"));
    }
    Ok(first)
}

/// The first word of a line of standard input; nothing if there is none.
pub(crate) fn read_password() -> Outcome<String> {
    let line = read_line().map_err(|error| Exit::with(exit::ERROR, error))?;
    Ok(line.split_whitespace().next().unwrap_or_default().to_owned())
}

/// A line, byte by byte: what follows it is left to whoever reads next, with a buffer of their own.
fn read_line() -> std::io::Result<String> {
    let input = std::io::stdin();
    let mut line = Vec::new();
    let mut byte = [0];
    while retry_on_intr(|| read(&input, &mut byte))? > 0 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).map_err(std::io::Error::other)
}

/// A terminal that does not show what is typed, until this is dropped.
struct Hidden(Option<Termios>);

impl Hidden {
    fn begin() -> std::io::Result<Hidden> {
        let input = std::io::stdin();
        if !input.is_terminal() {
            return Ok(Hidden(None));
        }
        let shown = tcgetattr(&input)?;
        let mut modes = shown.clone();
        modes.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&input, OptionalActions::Flush, &modes)?;
        Ok(Hidden(Some(shown)))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if let Some(shown) = &self.0 {
            // If the terminal is gone there is nothing to bring back.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, shown);
        }
    }
}
