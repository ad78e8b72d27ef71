//! The operator's binary.

use clap::Parser;
use operator::cli;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    cli::main(cli::Cli::parse()).await
}
