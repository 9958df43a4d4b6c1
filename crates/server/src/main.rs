//! The program `tailwater`; see the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    tailwater_server::run()
}
