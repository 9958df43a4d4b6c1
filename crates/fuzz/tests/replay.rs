//! Seeds and regressions of all targets, without a fuzzer.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tailwater_fuzz::{TARGETS, Target};

/// Of all committed seeds.
const SEED_BYTES_MAX: u64 = 64 << 10;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

/// The files in a folder, sorted; none when there is no folder.
fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<_> = entries.map(|entry| entry.expect("a readable entry").path()).collect();
    found.retain(|path| path.is_file());
    found.sort();
    found
}

fn run(target: &Target, path: &Path) -> bool {
    // Shown when the check panics.
    eprintln!("{}: {}", target.name, path.display());
    (target.check)(&fs::read(path).expect("a readable input"))
}

/// With `WRITE_SEEDS=1` the committed files are made anew.
#[test]
fn seeds_reach_what_their_decoders_are_for() {
    for target in TARGETS {
        let dir = fuzz().join("seeds").join(target.name);
        let made = (target.seeds)();
        if std::env::var_os("WRITE_SEEDS").is_some() {
            fs::create_dir_all(&dir).expect("a folder");
            files(&dir).iter().for_each(|path| fs::remove_file(path).expect("removed"));
            for (at, seed) in made.iter().enumerate() {
                fs::write(dir.join(format!("{at:02}")), seed).expect("written");
            }
        }
        for (at, seed) in made.iter().enumerate() {
            assert!((target.check)(seed), "{}: seed {at} is not what its decoder is for", target.name);
        }
        let committed = files(&dir);
        assert_eq!(committed.len(), made.len(), "{}: run this with WRITE_SEEDS=1", target.name);
        for path in committed {
            assert!(run(target, &path), "{} is not what its decoder is for", path.display());
        }
    }
    let bytes = TARGETS.iter().flat_map(|target| files(&fuzz().join("seeds").join(target.name)));
    let bytes: u64 = bytes.map(|path| fs::metadata(path).expect("a file").len()).sum();
    assert!(bytes <= SEED_BYTES_MAX, "seeds of {bytes} bytes");
}

#[test]
fn what_was_once_found_stays_fixed() {
    for target in TARGETS {
        for path in files(&fuzz().join("regressions").join(target.name)) {
            run(target, &path);
        }
    }
}

#[test]
fn inputs_without_sense_are_refused_by_all() {
    let noise: Vec<u8> = (0..=u8::MAX).rev().cycle().take(600).collect();
    for target in TARGETS {
        for input in [&[][..], &[0], &[0xff; 40], &noise] {
            let _known = (target.check)(input);
        }
        // Each seed cut off everywhere, and with each of its first bytes changed.
        for seed in (target.seeds)() {
            for at in 0..seed.len().min(64) {
                let _known = (target.check)(&seed[..at]);
                let mut changed = seed.clone();
                changed[at] ^= 0x55;
                let _known = (target.check)(&changed);
            }
        }
    }
}

/// Blind, where a fuzzer looks at what it reaches; but it needs nothing else. `FUZZ_SECONDS=n` for longer, all targets
/// together, `SEED=n` to replay.
#[test]
fn changed_seeds_harm_nobody() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("SEED").unwrap_or_else(rand::random);
    let each = Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(3)) / u32::try_from(TARGETS.len()).expect("few");
    for target in TARGETS {
        let mut random = StdRng::seed_from_u64(seed);
        let seeds = (target.seeds)();
        let (begun, mut inputs, mut known) = (Instant::now(), 0_u64, 0_u64);
        while begun.elapsed() < each {
            let input = changed(&mut random, &seeds);
            match std::panic::catch_unwind(|| (target.check)(&input)) {
                Ok(is_known) => known += u64::from(is_known),
                Err(_) => panic!("{}: SEED={seed}, input {inputs}: {input:02x?}", target.name),
            }
            inputs += 1;
        }
        eprintln!("{}: {inputs} inputs, {known} of them what it is for", target.name);
    }
}

/// One of them with a few changes, or two grown together.
fn changed(random: &mut StdRng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[random.random_range(0..seeds.len())].clone();
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..=bytes.len());
        let end = random.random_range(at..=bytes.len().min(at + 16));
        match random.random_range(0..7) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => {
                drop(bytes.splice(at..at, (0..random.random_range(1..9)).map(|_| random.random()).collect::<Vec<u8>>()))
            }
            3 => {
                let other = &seeds[random.random_range(0..seeds.len())];
                let from = random.random_range(0..=other.len());
                drop(bytes.splice(at..end, other[from..].iter().copied()));
            }
            4 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.random_range(0..5)],
            _ if at < bytes.len() => bytes[at] = random.random(),
            _ => {}
        }
    }
    bytes
}

#[test]
fn every_target_has_its_program_and_its_folders() {
    let known: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    let names = |dir: &str| -> BTreeSet<String> {
        let Ok(entries) = fs::read_dir(fuzz().join(dir)) else { return BTreeSet::new() };
        let stem = |path: PathBuf| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        entries.filter_map(|entry| stem(entry.expect("a readable entry").path())).collect()
    };
    assert_eq!(names("fuzz_targets"), known);
    assert_eq!(names("seeds"), known);
    assert!(names("regressions").is_subset(&known), "{:?}", names("regressions"));
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).expect("the manifest of the programs");
    for name in &known {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml has no program {name}");
    }
}
