//! `tailwater-micro NAME ROUNDS`: does one piece of work so often, in [`counted`]; without arguments it lists the names.

use anyhow::Context;
use tailwater_micro::{CORES, Work};

/// What an instruction counter watches; by this name.
#[inline(never)]
fn counted(work: &mut Work, rounds: u64) {
    (0..rounds).for_each(work);
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let Some(name) = arguments.next() else {
        CORES.iter().for_each(|(name, _)| println!("{name}"));
        return Ok(());
    };
    let rounds = arguments.next().context("usage: tailwater-micro NAME ROUNDS")?.parse()?;
    let (_, prepare) = CORES.iter().find(|(known, _)| *known == name).context("there is no such work")?;
    counted(&mut prepare(), rounds);
    Ok(())
}
