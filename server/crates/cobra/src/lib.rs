//! Command lines by the rules of cobra and pflag, the Go libraries that read those of etcd's tools.
//!
//! A program is a tree of [`Command`]s with their [`Flag`]s. From it come the parser, the help, what a
//! shell completes, and the words of every complaint, so that none of them can contradict another. Scripts
//! read these texts and exit codes; the tools that use this are compared with Go's line by line.
//!
//! In: the words of the command line, as bytes. Out: what the program has to run with the flags and
//! arguments that it was given, or an answer and an exit code.
//!
//! Where we differ: Go prints a complaint twice where the program prints what the library has printed.

mod command;
mod complete;
pub mod completion;
pub mod exit;
mod flags;
mod help;
mod run;
pub mod words;

pub use command::{Check, Command, Found, Invocation, one_argument};
pub use exit::{Exit, Outcome};
pub use flags::{Flag, Kind, Matches, WRITE_OUT};
pub use help::flag_list;
pub use run::{run, write};
pub use words::Word;
